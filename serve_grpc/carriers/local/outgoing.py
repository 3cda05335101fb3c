"""The half of a link that writes, and its window: what makes many calls share a message.

A socket takes a message in microseconds. If `write` always returned at once, each call would
leave alone, and the cost is by the message. So a link has `WINDOW` messages on their way at the
most: that many the peer has not taken by `read()`. `write` returns while there is room for another
one; else it waits until the peer has taken one, and what is queued meanwhile shares the next
message. There is no timer, and a lone call leaves at once.

How many messages this side has taken stands in the header of every frame that it sends. A frame for
that alone, an ACK, is sent only for a message that asks for it (its writer waits), and if nothing
else goes that way soon after it was taken. So calls one after the other never cause one.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
from collections.abc import Callable

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local.framing import (
    ACK,
    ASKS,
    CLOSE,
    COUNT_MASK,
    HEADER,
    MESSAGE,
    FramingError,
    header,
)
from serve_grpc.config import LOGGER_NAME

__all__ = ["Outgoing"]

logger = logging.getLogger(LOGGER_NAME)

WINDOW = 2
"""Messages on their way: one is read while the next is made. Neither 3 nor 4 was clearly faster."""
TURNS = 2
"""Of the loop, in which an answer to a message may take the acknowledgement along."""
MAX_DESCRIPTORS = 128
"""Between two messages. A peer takes 253 that wait for their message (`descriptors.py`), and those
of the next one may come with the end of the one before."""
SMALL_BYTES = 16 * 1024
"""Up to here it costs less to copy a message behind its header than to name both to the kernel."""


class Outgoing:
    """Writes frames to a socket.

    Args:
        sock: Connected, does not block.
        on_wait: Called when a write begins to wait: the answer has to be read.
        on_broken: Called when the socket takes nothing any more; calls `lose` with the reason.

    Attributes:
        taken: How many messages this side has taken, modulo 65,536; its reader counts.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_wait: Callable[[], None],
        on_broken: Callable[[OSError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_wait = on_wait
        self._on_broken = on_broken
        self._lost = ""
        self._in_flight = 0
        self._heard = 0  # what the peer has taken, as it says
        self._rest: list[memoryview] = []  # what the kernel has not taken
        self._room: asyncio.Future[None] | None = None
        self._is_out: asyncio.Future[None] | None = None
        self.taken = 0
        self._told = 0
        self._descriptors = 0  # since the last message

    async def write(self, message: bytes) -> None:
        """As of `Link`."""
        if self._lost:
            raise LinkLost(self._lost)
        if self._room is not None:
            # The task of the one before may have been cancelled: it is under way all the same.
            raise RuntimeError("another write is under way")
        self._in_flight += 1
        self._descriptors = 0
        is_last = self._in_flight >= WINDOW
        size = len(message)
        self._told = self.taken
        head = HEADER.pack(MESSAGE, ASKS if is_last else 0, self.taken, size)
        try:
            if self._rest:  # of a frame that is no message; the kernel's buffer is full of such
                sent = 0
            elif size <= SMALL_BYTES:
                sent = self._sock.send(head + message)
            else:
                sent = self._sock.sendmsg((head, message))
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._on_broken(error)
            raise LinkLost(self._lost) from None
        if sent < HEADER.size + size:
            self._keep(head, message, sent)
        elif not is_last:
            return
        self._on_wait()
        self._room = self._loop.create_future()
        await self._room

    def _keep(self, head: bytes, message: bytes, sent: int) -> None:
        parts = [memoryview(head), memoryview(message)]
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts and sent:
            parts[0] = parts[0][sent:]
        self._rest += parts
        self._loop.add_writer(self._sock, self._on_writable)

    def _on_writable(self) -> None:
        try:
            while self._rest:
                sent = self._sock.send(self._rest[0])
                if sent < len(self._rest[0]):
                    self._rest[0] = self._rest[0][sent:]
                else:
                    del self._rest[0]
        except BlockingIOError:
            return
        except OSError as error:
            self._on_broken(error)
            return
        self._loop.remove_writer(self._sock)
        self.acknowledge()  # it was held back, for what was half written
        if self._is_out is not None and not self._is_out.done():
            self._is_out.set_result(None)
        self._wake_writer()

    def heard(self, taken: int) -> bool:
        """The peer has taken so many messages; whether that is news.

        Raises:
            FramingError: It cannot have.
        """
        more = (taken - self._heard) & COUNT_MASK
        if more > self._in_flight:
            raise FramingError(f"{more} messages are acknowledged, of {self._in_flight}")
        self._in_flight -= more
        self._heard = taken
        self._wake_writer()
        return more > 0

    def _wake_writer(self) -> None:
        # In the loop's next turn, and that is meant: what is queued in this one rides along.
        room = self._room
        if room is not None and not self._rest and self._in_flight < WINDOW:
            self._room = None
            if not room.done():
                room.set_result(None)

    def acknowledge_soon(self) -> None:
        """Tell the peer what was taken, unless something else does in the next turns."""
        self._loop.call_soon(self._pass_turns, TURNS)

    def _pass_turns(self, left: int) -> None:
        if self._told == self.taken or self._lost:
            return
        if left > 1:
            self._loop.call_soon(self._pass_turns, left - 1)
        else:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Tell the peer what was taken, unless it was told."""
        if self._told != self.taken and not self._lost and not self._rest:
            self.send(ACK)

    def send(self, kind: int, body: bytes = b"") -> None:
        """Send a frame that is no message, behind what is under way; nothing on a lost link."""
        if self._lost and kind != CLOSE:
            return
        self._told = self.taken
        head = header(kind, 0, self.taken, len(body))
        if self._rest:
            self._rest.append(memoryview(head + body))
            return
        try:
            sent = self._sock.send(head + body)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._on_broken(error)
            return
        if sent < len(head) + len(body):
            self._keep(head, body, sent)

    def send_descriptor(self, kind: int, body: bytes, descriptor: int) -> bool:
        """Send a frame with a descriptor now; False, and nothing is sent, if that cannot be."""
        if self._rest or self._lost or self._descriptors >= MAX_DESCRIPTORS:
            return False
        head = header(kind, 0, self.taken, len(body))
        rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (descriptor,))
        try:
            sent = self._sock.sendmsg((head, body), (rights,))
        except OSError as error:  # no room, or too many descriptors are on their way
            logger.debug("a descriptor was not sent: %s", error)
            return False
        self._descriptors += 1
        self._told = self.taken
        if sent < len(head) + len(body):
            self._keep(head, body, sent)  # the descriptor went with the first byte
        return True

    @property
    def is_half_written(self) -> bool:
        """Whether the kernel has yet to take something."""
        return bool(self._rest)

    async def wait_out(self) -> None:
        """Return when the kernel has taken all, or the link is lost."""
        if self._rest:
            self._is_out = self._loop.create_future()
            await self._is_out

    def refuse(self, reason: str) -> None:
        """Take no message any more; who waits hears why. What is under way goes on."""
        self._lost = self._lost or reason
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_exception(LinkLost(self._lost))

    def lose(self, reason: str) -> None:
        """Write nothing any more."""
        self.refuse(reason)
        if self._rest:
            self._rest.clear()
            self._loop.remove_writer(self._sock)
        if self._is_out is not None and not self._is_out.done():
            self._is_out.set_result(None)
