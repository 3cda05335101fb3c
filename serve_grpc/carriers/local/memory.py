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

from serve_grpc.carriers.local.borrowing import Borrowing
from serve_grpc.carriers.local.framing import ABANDONED
from serve_grpc.carriers.local.lent import Frames, Lent
from serve_grpc.config import LOGGER_NAME
from serve_grpc.mailbox import Mailbox, mailbox_of
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory.process import ProcessMemory, process_memory

__all__ = ["LocalMemory", "open_memory"]

logger = logging.getLogger(LOGGER_NAME)


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
        self._borrowing: Borrowing | None = None
        self._lent = Lent(frames, memory.peer_bytes)
        self._is_closed = False
        memory.add(self)

    def __repr__(self) -> str:
        return f"<LocalMemory {len(self._lent)} lent, {self._borrowing!r}>"

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
        """As of `Borrowing`."""
        if self._borrowing is None:
            memory = self._memory
            self._borrowing = Borrowing(
                memory.most_mapped, self._frames.send, self._mailbox, memory.on_closed
            )
        self._borrowing.on_segment(body, fd)

    def on_forgotten(self, body: bytes) -> None:
        """As of `Borrowing`."""
        self._borrowed.on_forgotten(body)

    def borrow(self, place: Place) -> memoryview:
        """As of `LinkMemory`."""
        return self._borrowed.borrow(place)

    @property
    def _borrowed(self) -> Borrowing:
        if self._borrowing is None:
            raise ValueError("the peer names a segment, and has sent none")
        return self._borrowing

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """The link has ended; nothing happens the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        self._lent.close()
        if self._borrowing is not None:
            self._borrowing.close()
        self._memory.remove(self)
