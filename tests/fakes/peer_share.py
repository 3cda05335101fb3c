"""What one peer holds of a pool, as a local link counts it, without a link."""

from __future__ import annotations

from serve_grpc.shared_memory.mappings import MAX_SEGMENTS
from serve_grpc.shared_memory.pool import SegmentPool
from serve_grpc.shared_memory.ranges import Range
from serve_grpc.shared_memory.section import Section
from serve_grpc.shared_memory.size_classes import size_class

__all__ = ["PeerShare"]


class PeerShare:
    """The ranges of one peer. Any thread may call.

    Args:
        pool: Where they are from.
        max_bytes: The most that the peer may hold unreleased, in bytes, whole ranges.
        max_segments: In how many segments its ranges may lie; the peer refuses more.
    """

    def __init__(self, pool: SegmentPool, max_bytes: int, max_segments: int = MAX_SEGMENTS) -> None:
        self.max_bytes = max_bytes
        self.max_segments = max_segments
        self._pool = pool
        self._section = Section()
        self._held: dict[tuple[int, int], Range] = {}
        self._segments: set[int] = set()
        self._bytes_held = 0  # with those that are being allocated
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<PeerShare {len(self._held)} ranges, {self._bytes_held} of {self.max_bytes} bytes>"

    @property
    def bytes_held(self) -> int:
        """What the peer holds, in bytes."""
        return self._bytes_held

    def allocate(self, size: int) -> Range | None:
        """A range for `size` bytes, more than 0; None if the peer has its share, or the pool none.

        Its end is `release` of this object, not of the range.
        """
        counted = size_class(size)
        with self._section as is_mine:
            is_over = self._is_closed or self._bytes_held + counted > self.max_bytes
            if is_over or not is_mine:
                return None
            self._bytes_held += counted
        found = None
        try:
            found = self._pool.allocate(size)
        finally:
            is_given = self._is_given(found, counted)
        if found is not None and not is_given:
            found.release()  # the peer has not heard of it
        return found if is_given else None

    def _is_given(self, found: Range | None, counted: int) -> bool:
        with self._section:
            if found is not None and not self._is_closed and self._may_see(found.number):
                self._held[found.number, found.offset] = found
                return True
            if not self._is_closed:
                self._bytes_held -= counted
        return False

    def _may_see(self, number: int) -> bool:
        if number not in self._segments and len(self._segments) >= self.max_segments:
            return False
        self._segments.add(number)
        return True

    def release(self, number: int, offset: int) -> bool:
        """The peer reads a range no more, or never heard of it; False if it holds no such range.

        Raises:
            BufferError: An array made of the range's view lives on. The range stays held.
        """
        with self._section:
            found = self._held.pop((number, offset), None)
        if found is None:
            return False
        try:
            found.release()
        except BufferError:
            with self._section:
                self._held[number, offset] = found
            raise
        with self._section:
            if not self._is_closed:
                self._bytes_held -= size_class(found.size)
        return True

    def forget_segment(self, number: int) -> None:
        """The pool closed a segment, and the peer is being told."""
        with self._section:
            self._segments.discard(number)

    def close(self) -> None:
        """The peer is lost. What it holds it may still read: all of it is abandoned."""
        with self._section:
            self._is_closed = True
            held = list(self._held.values())
            self._held.clear()
            self._bytes_held = 0
        for each in held:
            each.abandon()
