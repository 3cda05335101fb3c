"""The receiver's side: views on ranges of a peer's segments.

A view is writable and private: what its holder writes nobody else sees. A range is the sender's
again when the last view of it is collected; until then the sender must not write there. So no
range is handed out twice at a time, no segment is unmapped under a view, whatever the peer says,
and what was sent can be read again (`payload.Origin`) after a view was written to. A forked child
has views as well, whose end nobody hears of: they get pages of their own. All methods are called on
one thread, unless they say otherwise; views die on any.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from serve_grpc.shared_memory.borrowed import BorrowedRange, Mapping
from serve_grpc.shared_memory.private_pages import PrivatePages
from serve_grpc.shared_memory.segments import (
    NoRoomError,
    SegmentRefusedError,
    check,
    map_fd,
)
from serve_grpc.shared_memory.untouched import arrived

__all__ = ["Mappings"]

MAX_SEGMENTS = 256
"""Of one peer. A pool has some dozens, if payloads are of all sizes."""


class _Watch(weakref.ref[Any]):
    """Sees the end of one range, and knows which it was."""

    __slots__ = ("mapping", "offset", "origin", "size")

    mapping: Mapping
    offset: int
    size: int
    origin: BorrowedRange

    # Of its own: a weak reference has those of what it refers to, and ctypes arrays have no hash.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def pages(self) -> int:
        """The pages that it covers, one bit each."""
        return _pages(self.offset, self.size)


class Mappings:
    """The segments of one peer, by the peer's numbers.

    Args:
        max_bytes: The most that is mapped at a time, segments that wait for their last view to die
            included.
        on_released: Called as `on_released(number, offset, size)`, once, when the last view of a
            range was collected: in a finalizer, so from any thread, in the midst of anything. It
            must only post, and take no lock. Whoever gets the post calls `settle`, and then tells
            the peer. Not called after `close`.
        max_segments: How many the peer may have.
        on_abandoned: Called in place of `on_released`, as `on_abandoned(number, offset)`, for a
            range that the peer must never write to again. Not to be told if None.
        on_gone: Called with `Lendable.number` of a segment that may have been lent on, and is not
            to be any more. In the thread that removes it.
    """

    def __init__(
        self,
        max_bytes: int,
        on_released: Callable[[int, int, int], object],
        max_segments: int = MAX_SEGMENTS,
        on_abandoned: Callable[[int, int], object] | None = None,
        on_gone: Callable[[int], object] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_segments = max_segments
        self._on_released = on_released
        self._on_abandoned = on_abandoned
        self._on_gone = on_gone
        self._by_number: dict[int, Mapping] = {}
        self._removed: set[Mapping] = set()
        self._watches: set[_Watch] = set()
        self._ended: deque[_Watch] = deque()
        self._private = PrivatePages()
        self._bytes = 0
        _all[id(self)] = self

    def __repr__(self) -> str:
        return (
            f"<Mappings {len(self._by_number)} segments, {self._bytes} bytes, {self.live} in use>"
        )

    @property
    def bytes(self) -> int:
        """What is mapped."""
        return self._bytes

    @property
    def live(self) -> int:
        """How many ranges have views."""
        return len(self._watches) - len(self._ended)

    def add(self, number: int, fd: int, size: int) -> None:
        """Map a segment that the peer sent.

        Args:
            number: The peer's, for this segment alone.
            fd: Its descriptor. It belongs to this object from here on, unless this call raises.
            size: What the peer says it has, in bytes.

        Raises:
            SegmentRefusedError: The peer lies, or has sent too many; as a NoRoomError, too much.
            OSError: This process cannot map more.
        """
        self.settle()
        if number in self._by_number:
            raise SegmentRefusedError(f"segment {number} is here already")
        if len(self._by_number) + len(self._removed) >= self.max_segments:
            raise SegmentRefusedError(f"more than {self.max_segments} segments")
        check(fd, size, sys.maxsize)
        if self._bytes + size > self.max_bytes:
            raise NoRoomError(
                f"segment {number} has {size} bytes; of {self.max_bytes}, {self._bytes} are in use"
            )
        self._by_number[number] = Mapping(number, fd, map_fd(fd, size))
        self._bytes += size

    def take(self, number: int, offset: int, size: int) -> memoryview:
        """The bytes of a range, writable.

        Args:
            number: Of the segment.
            offset: Where the range begins, a multiple of the page size.
            size: In bytes.

        Raises:
            SegmentRefusedError: There is no such range, or a view still lives in its pages.
        """
        self.settle()
        mapping = self._by_number.get(number)
        if mapping is None:
            raise SegmentRefusedError(f"there is no segment {number}")
        if offset < 0 or offset % mmap.PAGESIZE or size <= 0 or offset + size > mapping.size:
            raise SegmentRefusedError(
                f"segment {number} of {mapping.size} bytes has no range of {size} from {offset} on"
            )
        pages = _pages(offset, size)
        if mapping.taken & pages:
            raise SegmentRefusedError(
                f"{size} bytes from {offset} on are in use in {mapping.number}"
            )
        hold = mapping.holds.from_buffer(mapping.memory)
        hold.origin = BorrowedRange(mapping, offset, size)
        watch = _Watch(hold, self._on_collected)
        watch.mapping, watch.offset, watch.size = mapping, offset, size
        watch.origin = hold.origin
        mapping.taken |= pages
        mapping.live += 1
        self._watches.add(watch)
        arrived[mapping.address + offset] = hold
        return memoryview(hold).cast("B")[offset : offset + size]

    def descriptor(self, number: int) -> int:
        """The descriptor of a segment, to pass a range on; it stays this object's.

        Raises:
            KeyError: There is no such segment.
        """
        return self._by_number[number].descriptor.fd

    def remove(self, number: int) -> None:
        """Unmap a segment as soon as no view of it lives; no more ranges are taken of it.

        Raises:
            SegmentRefusedError: There is no such segment.
        """
        mapping = self._by_number.pop(number, None)
        if mapping is None:
            raise SegmentRefusedError(f"there is no segment {number}")
        mapping.is_removed = True
        self._lend_no_more(mapping)
        self._removed.add(mapping)
        self.settle()
        self._unmap_if_unused(mapping)

    def close(self) -> None:
        """The peer is gone: views live on, their memory goes with the last of them."""
        for mapping in self._by_number.values():
            self._lend_no_more(mapping)
        self._by_number.clear()
        self._removed.clear()
        self._watches.clear()  # what is not watched any more is not told of
        self._ended.clear()
        self._private.close()
        self._bytes = 0

    def settle(self) -> None:
        """Make ranges whose views are gone ready to be taken again.

        What was written there is dropped. To be called before the peer is told of the release, so
        that this costs no time when the next payload has come.

        Raises:
            OSError: What was written cannot be dropped. The range is never handed out again.
        """
        while self._ended:
            watch = self._ended.popleft()
            mapping = watch.mapping
            self._watches.discard(watch)
            mapping.live -= 1
            if mapping.is_removed:
                self._unmap_if_unused(mapping)
            elif not watch.origin.is_lent:  # else the peer never names it again
                # Before its pages count as free: who gets them next must not see what was here.
                self._private.drop(mapping.memory, mapping.address, watch.offset, watch.size)
                mapping.taken &= ~watch.pages

    def on_fork(self) -> None:
        """This process is about to be forked, by any thread.

        The child's views would show what the sender writes next, once those of this process are
        gone. So they get copies; where that cannot be, their ranges are not given back.
        """
        for watch in tuple(self._watches):
            hold = watch()  # meanwhile it is not given back
            if hold is not None:
                mapping = watch.mapping
                if not self._private.make(mapping.memory, watch.offset, watch.size):
                    self._watches.discard(watch)

    def _lend_no_more(self, mapping: Mapping) -> None:
        mapping.is_gone = True  # before the look: who passes it on sets the other one first
        if mapping.is_passed_on and self._on_gone is not None:
            self._on_gone(mapping.lent_as)

    def _unmap_if_unused(self, mapping: Mapping) -> None:
        if mapping.live == 0 and mapping in self._removed:
            self._removed.discard(mapping)
            self._bytes -= mapping.size
            # No `mmap.close`: mapping and descriptor go when nothing refers to them.

    def _on_collected(self, watch: weakref.ref[Any]) -> None:
        # A finalizer: it may run inside any other method here, so it only appends and posts.
        assert isinstance(watch, _Watch)
        self._ended.append(watch)
        if not watch.origin.is_lent:
            self._on_released(watch.mapping.number, watch.offset, watch.size)
        elif self._on_abandoned is not None:
            self._on_abandoned(watch.mapping.number, watch.offset)


_all: weakref.WeakValueDictionary[int, Mappings] = weakref.WeakValueDictionary()


def _on_fork() -> None:
    # Not `iter`: another thread may be in the midst of adding one.
    for found in _all.valuerefs():
        mappings = found()
        if mappings is not None:
            mappings.on_fork()


os.register_at_fork(before=_on_fork)


def _pages(offset: int, size: int) -> int:
    """The pages of a range, one bit each."""
    first = offset // mmap.PAGESIZE
    last = (offset + size - 1) // mmap.PAGESIZE
    return ((1 << (last - first + 1)) - 1) << first
