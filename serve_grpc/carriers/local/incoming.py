"""The half of a link that reads.

Nothing is read from the socket before somebody wants to: `read` was called, or a write waits to
hear what the peer has taken. The reader goes on in the turn in which its message came
(`waiter.py`). Invariant: what had arrived before the end is read before it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local.descriptors import ANCILLARY_BYTES, ArrivingSegments, WithSegments
from serve_grpc.carriers.local.framing import (
    ABORT,
    ACK,
    ASKS,
    CHUNK_BYTES,
    CLOSE,
    COUNT_MASK,
    MESSAGE,
    Decoder,
    Frame,
    FramingError,
    read_abort,
)
from serve_grpc.carriers.local.memory import LocalMemory
from serve_grpc.carriers.local.outgoing import Outgoing
from serve_grpc.carriers.local.waiter import Waiter

__all__ = ["CLOSED", "Incoming"]

CLOSED = "the link is closed"
MAX_UNREAD = 8
"""Messages that wait for `read`. A peer has at most its window on their way, so this is a lie."""
PROVING = 2
"""So many messages a stranger needs to prove itself; until then it may have one unread at a time,
so that it takes no more memory than over gRPC. That `read` is called again says that a message was
in order: it is not after a refusal."""
READS = 8
"""System calls for one link, before other links have their turn."""
LAST_READS = 256
"""For what a peer that is gone has left behind. The kernel holds less, but a peer that only takes
nothing may go on to send."""

# Plain integers: the operators of an enum are Python code, and these are used for every message.
_FLAGS = int(socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_CTRUNC)
_local = threading.local()


def _scratch() -> memoryview:
    # One for all links of a thread: they are on one loop, and leave nothing in it.
    try:
        return _local.scratch  # type: ignore[no-any-return]
    except AttributeError:
        _local.scratch = memoryview(bytearray(CHUNK_BYTES))
        return _local.scratch  # type: ignore[no-any-return]


class Incoming:
    """Reads frames from a socket.

    Args:
        sock: Connected, does not block.
        outgoing: Hears what the peer has taken, and tells it what was taken here.
        peer: Who that is, for people.
        max_message_bytes: Largest message.
        is_stranger: The peer has to prove itself.
        memory: What the link shares beside messages; None if nothing.
        on_end: Called once, when nothing more can come: with why, "" for an end in peace, and
            whether the peer broke the rules.
    """

    def __init__(
        self,
        sock: socket.socket,
        outgoing: Outgoing,
        peer: str,
        max_message_bytes: int,
        is_stranger: bool,
        memory: LocalMemory | None,
        on_end: Callable[[str, bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._outgoing = outgoing
        self._peer = peer
        self._on_end = on_end
        self._decoder = Decoder(max_message_bytes, _scratch())
        self._segments = ArrivingSegments(memory)
        self._arrived: list[bytes | WithSegments] = []  # few, and no deque: see `Outbox`
        self._asked = 0  # how many of them come before the answer is due; 0 if nobody waits for it
        self._unproven = PROVING + 1 if is_stranger else 0  # so many times `read` is to be called
        self._is_reading = False
        self._reader: Waiter | None = None
        self._end: str | None = None  # what follows the messages: "" in peace, or why not
        self._lost = ""  # why nothing is read any more

    async def read(self) -> bytes | None:
        """As of `Link`."""
        if self._unproven:
            self._unproven -= 1
        while not self._arrived:
            if self._lost:
                raise LinkLost(self._lost)
            if self._end is not None:
                self._lost = self._end or CLOSED
                if not self._end:
                    return None
                continue
            self.start()
            self._reader = Waiter(self._loop)
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._arrived.pop(0)
        if isinstance(message, WithSegments):
            message = self._map(message)
        self._outgoing.taken = (self._outgoing.taken + 1) & COUNT_MASK
        if self._asked:
            self._asked -= 1
            if not self._asked:
                self._outgoing.acknowledge_soon()
        return message

    def _map(self, message: WithSegments) -> bytes:
        try:
            return self._segments.map(message)
        except FramingError as error:
            self._ends(str(error), is_invalid=True)
            self.lose(str(error))
            raise LinkLost(self._lost) from None

    def start(self) -> None:
        """Read from the socket from now on."""
        if not self._is_reading and self._end is None and not self._lost:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._on_readable)

    def stop(self) -> None:
        """Leave what comes in the socket."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)

    def is_gone(self, error: OSError) -> str:
        """The peer takes nothing any more; why."""
        # What it said last is in the socket: the reason, most often.
        self.receive(LAST_READS)
        self._ends(f"{self._peer} is gone: {error.strerror}")
        self._wake(at_once=False)
        return self._lost or self._end or CLOSED

    def lose(self, reason: str) -> None:
        """Nothing is read any more, because of what this side did."""
        self._lost = self._lost or reason
        for message in self._arrived:
            self._segments.drop(message)
        self._arrived.clear()
        self._segments.close()
        self._wake(at_once=False)

    def _on_readable(self) -> None:
        self.receive()
        self._wake(at_once=True)
        if self._unproven and self._arrived:
            self.stop()

    def _wake(self, *, at_once: bool) -> None:
        if self._reader is not None and (self._arrived or self._end is not None or self._lost):
            self._reader.wake(at_once=at_once)

    def receive(self, most: int = READS) -> None:
        """Take in what has come, in so many system calls; does not wake the reader."""
        if self._end is not None or self._lost:
            return
        frames: list[Frame] = []
        try:
            for _ in range(most):
                buffer = self._decoder.buffer()
                count, ancillary, flags, _ = self._sock.recvmsg_into(
                    (buffer,), ANCILLARY_BYTES, _FLAGS
                )
                if ancillary or flags & _CUT:
                    self._segments.keep(
                        ancillary, is_wanted=not self._unproven, is_cut=bool(flags & _CUT)
                    )
                if not count:
                    self._ends(f"{self._peer} is gone")
                    return
                try:
                    self._decoder.received(count, frames)
                finally:
                    for frame in frames:
                        self._take(*frame)
                    frames.clear()
                if self._decoder.is_between_frames:
                    self._segments.check_frames_came()
                # There may be more behind a descriptor, where the kernel stops. The loop tells of
                # it; of a peer that is gone, nobody does.
                if self._end is not None or (count < len(buffer) and most == READS):
                    return
        except BlockingIOError:
            return
        except FramingError as error:
            self._ends(str(error), is_invalid=True)
        except OSError as error:
            self._ends(f"{self._peer} is gone: {error.strerror}")

    def _take(self, kind: int, flags: int, taken: int, body: bytes) -> None:
        if self._end is not None or self._lost:
            return  # nothing follows an end
        is_news = self._outgoing.heard(taken)
        if kind == MESSAGE:
            self._arrived.append(self._segments.with_message(body) if self._segments else body)
            if flags & ASKS:
                self._asked = len(self._arrived)
            if len(self._arrived) > MAX_UNREAD:
                raise FramingError("more messages came than may be on their way")
        elif kind == CLOSE:
            self._ends("")
        elif kind == ABORT:
            self._ends(read_abort(body))
        elif kind == ACK:
            # So there is one for each message at the most, whoever sends them.
            if not is_news:
                raise FramingError("an acknowledgement of nothing")
        else:
            if self._unproven:
                raise FramingError(f"a frame of kind {kind} before the peer has proved itself")
            self._segments.on_frame(kind, body)

    def _ends(self, reason: str, *, is_invalid: bool = False) -> None:
        if self._end is None and not self._lost:
            self._end = reason
            self._segments.close()  # those of messages that have come are still wanted
            self._on_end(reason, is_invalid)
