"""The caller's pump: dials a link to one replica, and moves a session's messages over it.

The owner hears `on_message` for each message and `on_closed` once, with what ended the session.
Invariant: the link is let go before `on_closed`, in the order that leaks nothing: the writer is
told to stop, the link is aborted if the replica did not end it, the writer is waited for (a write
to a peer that reads nothing ends only with its link), the link is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.link import Cause, Dial, Link, LinkLost
from serve_grpc.carriers.pump import Writer
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.protocol.caller import CallerSession, CallT

__all__ = ["CallerPump"]

logger = logging.getLogger(LOGGER_NAME)


class CallerPump:
    """I/O of one session. Lives on the event loop it is started on.

    Args:
        session: The machine whose outbox is written.
        address: "host:port" of the replica.
        settings: For the dial.
        dial: Makes the link.
        on_message: Called with each message of the replica; an exception of it ends the session.
        on_closed: Called once when the link is gone, with the reason: text if a side ended it or it
            broke, else the exception, and that is a CancelledError if neither side ended it, but
            whoever ends all tasks of the loop.
        counters: Where messages and bytes are counted.

    Attributes:
        carrier: Of the link that was dialled, "" until there is one.
    """

    def __init__(
        self,
        session: CallerSession[CallT],
        address: str,
        settings: Settings,
        dial: Dial,
        *,
        on_message: Callable[[bytes], None],
        on_closed: Callable[[BaseException | str], None],
        counters: Counters,
    ) -> None:
        self._session = session
        self._address = address
        self._settings = settings
        self._dial = dial
        self._on_message = on_message
        self._on_closed = on_closed
        self._counters = counters
        self._writer: Writer | None = None
        self._task: asyncio.Task[None] | None = None
        self.carrier = ""
        self._write_error = ""
        self._end_reason = ""
        self._has_begun = False

    def start(self) -> None:
        """Connect and run in a task of the current loop."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"serve_grpc session to {self._address}"
        )

    def kick(self, *, at_once: bool = False) -> None:
        """Tell that the session has something to write, and whether it may wait for company."""
        if self._writer is not None:
            self._writer.kick(at_once=at_once)

    def kick_item(self) -> None:
        """As `Writer.kick_item`."""
        if self._writer is not None:
            self._writer.kick_item()

    def cancel(self, reason: str = "closed by the caller") -> None:
        """End the session; `on_closed` follows, with this reason."""
        if self._task is not None and not self._has_begun and not self._end_reason:
            # A task that is cancelled before its first step never gets to say that it has ended.
            asyncio.get_running_loop().call_soon(self._on_closed, reason)
        # Before the cancel: `_run` tells by it whether a side ended the session, or the whole loop.
        self._end_reason = reason
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return when the link is gone."""
        if self._task is not None:
            # Not `await self._task`: a cancel of whoever waits would go on to the session's task.
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        self._has_begun = True
        reason: BaseException | str = "the replica closed the session"
        try:
            logger.debug("dialling %s", self._address)
            link = await self._dial(self._address, self._settings)
            self.carrier = link.carrier
            if link.memory is not None:
                self._session.share(link.memory)
            logger.debug("the link to %s is over %s", self._address, link.carrier)
            await self._pump(link)
        except asyncio.CancelledError as error:
            # Not raised again: the task ends here, and the reason says who cancelled it. A writer
            # that failed did so by itself, whatever this side wanted next.
            reason = self._write_error or self._end_reason or error
        except LinkLost as lost:
            reason = lost.reason
        except Exception as error:
            # A refusal, a bug here, or a peer that breaks the protocol: only this session ends.
            reason = error
        logger.debug("the %s link to %s has ended: %s", self.carrier, self._address, reason)
        self._on_closed(reason)

    async def _pump(self, link: Link) -> None:
        outbox, counters = self._session.outbox, self._counters
        writer = self._writer = Writer(outbox, link.write, counters=counters)
        # A task of its own: reading must go on while a write waits for the replica, or both sides
        # could wait for each other with full windows.
        writing = asyncio.get_running_loop().create_task(writer.run())
        writing.add_done_callback(self._on_writer_done)
        is_ended = False
        try:
            # Here, and not in a coroutine of its own: this is what all idle sessions stand in.
            while (message := await link.read()) is not None:
                counters.messages_received += 1
                counters.bytes_received += len(message)
                self._on_message(message)
                del message  # a megabyte maybe, and the next one may come in an hour
                # Not `at_once`: `on_message` has kicked so itself where nothing else is to come.
                if outbox.queued_bytes:
                    writer.kick()
            is_ended = True
        finally:
            # First: `_on_writer_done` tells by it that the end of the writer is ours.
            self._writer = None
            writing.cancel()
            if not is_ended:
                await link.abort(Cause.LEFT, self._end_reason)
            # An error of the writer is told already (`_on_writer_done`), or follows from the abort.
            await asyncio.gather(writing, return_exceptions=True)
            await link.close()

    def _on_writer_done(self, writing: asyncio.Task[None]) -> None:
        # Nobody would read the end of a link whose writer is gone: end it here.
        if self._writer is not None and self._task is not None and not writing.cancelled():
            error = writing.exception()
            self._write_error = error.reason if isinstance(error, LinkLost) else repr(error)
            self._task.cancel()
