"""What this end of a local link borrows of the memory of its peer.

The segments that the peer has sent, the views on their ranges, and the frames that give ranges back
when the last view of each is gone. Made with the first segment, for most links never see one.
Invariant: what a finalizer does here is to append and to post.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from serve_grpc.carriers.local.framing import (
    ABANDONED,
    MAX_RELEASED,
    NUMBER_BODY,
    RANGE_BODY,
    RELEASED,
    SEGMENT_BODY,
)
from serve_grpc.config import LOGGER_NAME
from serve_grpc.mailbox import Mailbox
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory.mappings import MAX_SEGMENTS, Mappings
from serve_grpc.shared_memory.segments import NoRoomError
from serve_grpc.shared_memory.unmapped import Unmapped

__all__ = ["Borrowing"]

logger = logging.getLogger(LOGGER_NAME)


class Borrowing:
    """Lives on the link's loop.

    Args:
        most_mapped: The most that is mapped of the peer's memory, in bytes.
        send: Sends a frame to the peer.
        mailbox: Of the link's loop.
        on_gone: As of `Mappings`.
    """

    def __init__(
        self,
        most_mapped: int,
        send: Callable[[int, bytes], None],
        mailbox: Mailbox,
        on_gone: Callable[[int], object],
    ) -> None:
        self._send = send
        self._mailbox = mailbox
        self.mappings = Mappings(
            most_mapped, self._on_released, on_abandoned=self._on_abandoned, on_gone=on_gone
        )
        self.unmapped = Unmapped(MAX_SEGMENTS)
        self._released: deque[tuple[int, int]] = deque()
        self._abandoned: deque[tuple[int, int]] = deque()
        self._is_posted = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Borrowing {self.mappings!r}>"

    def on_segment(self, body: bytes, fd: int) -> None:
        """The peer has sent a segment, whose descriptor belongs to this object from now on.

        Raises:
            ValueError: It is not what it should be; the descriptor stays the caller's.
        """
        number, size = SEGMENT_BODY.unpack(body)
        if number in self.unmapped:
            raise ValueError(f"segment {number} is here already")
        try:
            self.mappings.add(number, fd, size)
        except (NoRoomError, OSError) as error:
            # The peer's pool may be larger than what this process may map, and that is no lie.
            self.unmapped.add(number, fd, size)
            logger.debug("payloads in a segment of a peer will be copied: %s", error)

    def on_forgotten(self, body: bytes) -> None:
        """The peer will name a segment no more.

        Raises:
            ValueError: There is none.
        """
        (number,) = NUMBER_BODY.unpack(body)
        if number in self.unmapped:
            self.unmapped.remove(number)
        else:
            self.mappings.remove(number)

    def borrow(self, place: Place) -> memoryview:
        """As of `LinkMemory`."""
        if place.segment in self.unmapped:
            copy = self.unmapped.read(*place)
            self._on_released(*place)
            return copy
        return self.mappings.take(*place)

    def _on_released(self, number: int, offset: int, _: int) -> None:
        # A finalizer, in any thread: it only appends and posts.
        self._released.append((number, offset))
        self._post()

    def _on_abandoned(self, number: int, offset: int) -> None:
        self._abandoned.append((number, offset))  # as above
        self._post()

    def _post(self) -> None:
        # Of two at a time both may post, and never none: it is cleared before the first is taken.
        if not self._is_posted:
            self._is_posted = True
            try:
                self._mailbox.post(self._give_back)
            except RuntimeError:  # the loop is closed, and with it the link
                self._released.clear()
                self._abandoned.clear()

    def _give_back(self) -> None:
        self._is_posted = False
        if self._is_closed:
            return
        self.mappings.settle()
        for kind, ended in ((RELEASED, self._released), (ABANDONED, self._abandoned)):
            while ended:
                count = min(len(ended), MAX_RELEASED)
                body = b"".join(RANGE_BODY.pack(*ended.popleft()) for _ in range(count))
                self._send(kind, body)

    def close(self) -> None:
        """The link has ended."""
        self._is_closed = True
        self.mappings.close()
        self.unmapped.close()
