"""A link within one event loop: two ends, with a pipe each way between them.

As over a network a pipe holds a few messages, and a writer waits while it is full; what was written
before an end closed or aborted the link is still read. Weather comes by the methods of an end
(`hold`, `cut`) and by the delay that a pair is made with, so that nobody has to reach inside.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from serve_grpc.carriers.link import Cause, Dial, Link, LinkLost
from serve_grpc.config import LOGGER_NAME, Settings

__all__ = ["LoopbackLink", "loopback_dial", "pair"]

logger = logging.getLogger(LOGGER_NAME)

WINDOW = 4
"""Messages in a pipe before its writer waits."""
CLOSED = "the link is closed"

Delay = Callable[[], float]
"""Gives the seconds that one message is on its way."""


class _Pipe:
    """One direction: messages in order, then the end."""

    def __init__(self, window: int, delay: Delay | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._window = window
        self._delay = delay
        self._due_s = 0.0
        self._arrived: deque[bytes] = deque()
        self._unread = 0  # of them, and of those on their way
        self._is_held = False
        self._end: str | None = None  # what follows the messages: "" in peace, or why not
        self._lost = ""  # why nothing is read any more
        self._deaf = ""  # why nothing may be written any more
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # ------------------------------------------------------------ for the end that writes

    async def write(self, message: bytes) -> None:
        if self._deaf:
            raise LinkLost(self._deaf)
        if self._writer is not None:  # its task may have been cancelled: it is under way
            raise RuntimeError("another write is under way")
        self._unread += 1
        self._bring(self._arrive, message)
        # After it was handed over, as `Link.write` promises: a cancelled write is still under way.
        if self._unread > self._window:
            self._writer = self._loop.create_future()
            await self._writer

    def finish(self, reason: str) -> None:
        """Nothing follows what was written; `reason` is "" for an end in peace."""
        self._refuse(CLOSED)
        self._bring(self._arrive_end, reason)

    def _bring(self, arrive: Callable[[object], None], what: object) -> None:
        if self._delay is None:
            arrive(what)
            return
        # Timers of one time run in any order; messages stay in theirs.
        self._due_s = max(self._due_s + 1e-6, self._loop.time() + self._delay())
        self._loop.call_at(self._due_s, arrive, what)

    # ------------------------------------------------------------ on the way

    def _arrive(self, message: object) -> None:
        assert isinstance(message, bytes)
        if not self._lost:
            self._arrived.append(message)
            self._wake_reader()

    def _arrive_end(self, reason: object) -> None:
        assert isinstance(reason, str)
        if self._end is None:
            self._end = reason
            self._wake_reader()

    def hold(self, is_held: bool) -> None:
        self._is_held = is_held
        self._wake_reader()

    def lose(self, reason: str) -> None:
        """Drop what is in the pipe, and let nothing pass any more."""
        self._lost = self._lost or reason
        # As a broken network does: nobody knows what of it would have come.
        self._arrived.clear()
        self._unread = 0
        self._refuse(reason)
        self._wake_reader()

    def _refuse(self, reason: str) -> None:
        self._deaf = self._deaf or reason
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_exception(LinkLost(reason))

    # ------------------------------------------------------------ for the end that reads

    async def read(self) -> bytes | None:
        while True:
            if self._lost:
                raise LinkLost(self._lost)
            # Held is only reading: what was written is on its way, and fills the window as ever.
            if not self._is_held:
                if self._arrived:
                    return self._take()
                if self._end is not None:
                    self._lost = self._end or CLOSED
                    if self._end:
                        continue
                    return None
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def _take(self) -> bytes:
        self._unread -= 1
        writer = self._writer
        if writer is not None and self._unread <= self._window:
            self._writer = None
            if not writer.done():
                writer.set_result(None)
        return self._arrived.popleft()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class LoopbackLink:
    """One end of a pair. Is a `Link`."""

    carrier = "memory"
    memory = None

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.read = incoming.read
        self.write = outgoing.write
        self.is_closed = False

    async def abort(self, cause: Cause, reason: str) -> None:
        """As of `Link`; the other end hears the reason and not the cause."""
        self._end(reason, reason)

    async def close(self) -> None:
        """As of `Link`."""
        self._end("", CLOSED)

    def _end(self, told: str, reason: str) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._outgoing.finish(told)
            self._incoming.lose(reason)

    def hold(self, is_held: bool) -> None:
        """Let nothing that this end has written arrive, until it is let go again."""
        self._outgoing.hold(is_held)

    def cut(self, reason: str = "the link was cut") -> None:
        """Both ends lose the link, and what is on its way, as when a network breaks."""
        self.is_closed = True
        self._outgoing.lose(reason)
        self._incoming.lose(reason)


def pair(*, window: int = WINDOW, delay: Delay | None = None) -> tuple[LoopbackLink, LoopbackLink]:
    """Two ends of one link. On the running loop.

    Args:
        window: How many messages a pipe holds before its writer waits.
        delay: How long each message is on its way; None for not at all.
    """
    one_way, other_way = _Pipe(window, delay), _Pipe(window, delay)
    return LoopbackLink(one_way, other_way), LoopbackLink(other_way, one_way)


def loopback_dial(serve: Callable[[Link], Awaitable[None]], *, window: int = WINDOW) -> Dial:
    """A dial that reaches `serve`, whatever the address: it is run with the other end of each link.

    Args:
        serve: Serves one link to its end, on the dialler's loop.
        window: As of `pair`.
    """
    serving: set[asyncio.Future[None]] = set()  # a loop holds its tasks weakly

    async def serve_to_its_end(far: Link) -> None:
        try:
            await serve(far)
        except Exception as error:
            logger.exception("a link in memory was not served to its end")
            await far.abort(Cause.LEFT, repr(error))
        finally:
            await far.close()

    async def dial(address: str, settings: Settings) -> Link:
        near, far = pair(window=window)
        task = asyncio.ensure_future(serve_to_its_end(far))
        serving.add(task)
        task.add_done_callback(serving.discard)
        return near

    return dial
