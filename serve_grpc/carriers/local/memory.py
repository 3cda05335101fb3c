"""What the two ends of a local link share: pieces of payloads in the memory of either process.

Each end lends pieces of its own, and those that it passes on, and borrows those of its peer. A
segment's descriptor crosses once, in a frame before the first message that names the segment; when
the last view of a borrowed range is gone, a frame gives it back. Invariants: a lent piece is kept
until it is given back; one that is not when the link ends, however it ends, is never written to
again, for the peer may still read it, and its owner hears so, if that is another process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol

from serve_grpc.carriers.local.framing import (
    ABANDONED,
    MAX_RELEASED,
    NUMBER_BODY,
    RANGE_BODY,
    RELEASED,
    SEGMENT_BODY,
)
from serve_grpc.carriers.local.lent import Lent
from serve_grpc.config import LOGGER_NAME
from serve_grpc.mailbox import Mailbox, mailbox_of
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory.mappings import MAX_SEGMENTS, Mappings
from serve_grpc.shared_memory.process import ProcessMemory, process_memory
from serve_grpc.shared_memory.segments import NoRoomError
from serve_grpc.shared_memory.unmapped import Unmapped

__all__ = ["Frames", "LocalMemory", "open_memory"]

logger = logging.getLogger(LOGGER_NAME)


class Frames(Protocol):
    """How the ends talk about memory."""

    def send(self, kind: int, body: bytes) -> None:
        """Send a frame; nothing once the link is lost."""

    def send_descriptor(self, kind: int, body: bytes, descriptor: int) -> bool:
        """Send a frame with a descriptor now; False if that cannot be."""


def open_memory(frames: Frames) -> LocalMemory | None:
    """What a new link on the running loop shares; None where a process keeps no such memory."""
    memory = process_memory()
    if memory.pieces is None:
        return None
    mailbox = mailbox_of(asyncio.get_running_loop())
    return LocalMemory(memory, frames, mailbox)


class LocalMemory:
    """One end. Is a `LinkMemory`. Lives on the link's loop.

    Args:
        memory: Of this process.
        frames: To the peer.
        mailbox: Of the link's loop.
    """

    def __init__(self, memory: ProcessMemory, frames: Frames, mailbox: Mailbox) -> None:
        self._memory = memory
        self._frames = frames
        self._mailbox = mailbox
        self._mappings = Mappings(
            memory.most_mapped,
            self._on_released,
            on_abandoned=self._on_abandoned,
            on_gone=memory.on_closed,
        )
        self._unmapped = Unmapped(MAX_SEGMENTS)
        self._released: deque[tuple[int, int]] = deque()
        self._abandoned: deque[tuple[int, int]] = deque()
        self._is_posted = False
        self._lent = Lent(frames.send, frames.send_descriptor, memory.peer_bytes)
        self._is_closed = False
        memory.add(self)

    def __repr__(self) -> str:
        return f"<LocalMemory {len(self._lent)} lent, {self._mappings!r}>"

    # ------------------------------------------------------------ what is ours

    def lend(self, part: memoryview) -> Place | None:
        """As of `LinkMemory`."""
        return None if self._is_closed else self._lent.lend(part)

    def on_given_back(self, kind: int, body: bytes) -> None:
        """The peer has let go of ranges.

        Raises:
            ValueError: It has none of them.
        """
        if self._lent.give_back(body, is_abandoned=kind == ABANDONED):
            self._mailbox.post(self._lent.tell_gone)

    def on_segment_closed(self, number: int) -> None:
        """The pool, or the owner of a borrowed segment, has closed it. In any thread."""
        try:
            self._mailbox.post(self._forget, number)
        except RuntimeError:
            logger.debug("segment %d is closed, and so is the loop of a link", number)

    def _forget(self, number: int) -> None:
        if not self._is_closed:
            self._lent.forget(number)

    # ------------------------------------------------------------ what is the peer's

    def on_segment(self, body: bytes, fd: int) -> None:
        """The peer has sent a segment, whose descriptor belongs to this object from now on.

        Raises:
            ValueError: It is not what it should be; the descriptor stays the caller's.
        """
        number, size = SEGMENT_BODY.unpack(body)
        if number in self._unmapped:
            raise ValueError(f"segment {number} is here already")
        try:
            self._mappings.add(number, fd, size)
        except (NoRoomError, OSError) as error:
            # The peer's pool may be larger than what this process may map, and that is no lie.
            self._unmapped.add(number, fd, size)
            logger.debug("payloads in a segment of a peer will be copied: %s", error)

    def on_forgotten(self, body: bytes) -> None:
        """The peer will name a segment no more.

        Raises:
            ValueError: There is none.
        """
        (number,) = NUMBER_BODY.unpack(body)
        if number in self._unmapped:
            self._unmapped.remove(number)
        else:
            self._mappings.remove(number)

    def borrow(self, place: Place) -> memoryview:
        """As of `LinkMemory`."""
        if place.segment in self._unmapped:
            copy = self._unmapped.read(*place)
            self._on_released(*place)
            return copy
        return self._mappings.take(*place)

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
        self._mappings.settle()
        for kind, ended in ((RELEASED, self._released), (ABANDONED, self._abandoned)):
            while ended:
                count = min(len(ended), MAX_RELEASED)
                body = b"".join(RANGE_BODY.pack(*ended.popleft()) for _ in range(count))
                self._frames.send(kind, body)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """The link has ended; nothing happens the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        self._lent.close()
        self._mappings.close()
        self._unmapped.close()
        self._memory.remove(self)
