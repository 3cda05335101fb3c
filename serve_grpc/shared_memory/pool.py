"""The sender's side: ranges of shared memory that were written to before.

Memory that is touched for the first time costs twenty times the copy, so ranges are kept, those
used last are taken first, and only what is idle for 30 s goes back. Ranges are of size classes; a
segment holds ranges of one class, and each further segment of a class holds more of them. On an
event loop only what is needed at once is made; a thread makes the rest (`maker.py`).

Invariants: no two ranges overlap; what is kept is within the bound; a range that a lost peer may
still read is never written to again. The lock is not held over a copy, nor while a segment is
made or closed. Any thread may call, but no finalizer: it could interrupt who holds the lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator

from serve_grpc.shared_memory.maker import Maker
from serve_grpc.shared_memory.memory_limits import has_room_for
from serve_grpc.shared_memory.ranges import Kept, PoolStatistics, Range
from serve_grpc.shared_memory.section import Section
from serve_grpc.shared_memory.segments import Segment
from serve_grpc.shared_memory.size_classes import size_class

__all__ = ["SegmentPool"]

FIRST_SEGMENT_BYTES = 1024 * 1024
"""The first segment of a class; the second has as much, the third as much as both, and so on."""
LARGEST_SEGMENT_BYTES = 64 * 1024 * 1024
"""No segment has more, unless a single range needs it."""
MOST_OVERSIZE = 2
"""A range this many times too large is taken rather than new memory."""
IDLE_S = 30.0


def _nobody(*_: object) -> None:
    pass


class SegmentPool:
    """The shared memory of one process, for all its peers.

    Args:
        max_bytes: The most that is kept, in bytes.
        clock: Seconds, as `time.monotonic` has them.
        on_closed: Called with the number of each segment that goes, so that peers unmap it: only
            then its memory is free. From the thread that closed it, without the lock held.
        has_room: Whether the system has room for so many bytes.
        on_made: Called when a segment was made, as `on_closed` is.
    """

    def __init__(
        self,
        max_bytes: int,
        clock: Callable[[], float],
        on_closed: Callable[[int], object] = _nobody,
        has_room: Callable[[int], bool] = has_room_for,
        on_made: Callable[[], object] = _nobody,
    ) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._on_closed = on_closed
        self._maker = Maker(has_room)
        self._on_made = on_made
        self._pid = os.getpid()
        self._section = Section()
        self._ended: deque[tuple[Range, bool, float]] = deque()
        self._segments: dict[int, Kept] = {}
        self._free: dict[int, list[tuple[Kept, int]]] = {}  # by class; the last is the warmest
        self._last_number = 0
        self._bytes_kept = 0  # with those of segments that are being made
        self._bytes_in_use = 0
        self._made = self._refused = self._short = 0

    def __repr__(self) -> str:
        return f"<SegmentPool {self.statistics()}>"

    def allocate(self, size: int) -> Range | None:
        """A range for `size` bytes, more than 0; None if there is none: then send them otherwise.

        May make a segment, which takes about a millisecond a megabyte: of more than 4 MiB on an
        event loop only if the range has more.
        """
        if self._pid != os.getpid():
            return None  # a forked child shares the memory, but not what is known of its use
        wanted = size_class(size)
        with self._section as is_mine:
            if not is_mine:
                return None  # a finalizer, in the midst of these very lines
            closed = self._settle()
            found = self._take(wanted, size)
            now = later = 0
            if found is None:
                now, later, victims = self._plan(wanted)
                closed += victims
        self._close(closed)
        if not now:
            return found
        try:
            return self._grow(wanted, now, size)
        finally:
            if later:
                self._maker.beside(wanted, later, self._on_made_beside)

    def trim(self, now: float | None = None) -> float | None:
        """Close segments that nobody has used for 30 s.

        Args:
            now: Of the pool's clock, in seconds.

        Returns:
            How long nothing more can be due, in seconds; None if there is nothing left.
        """
        if self._pid != os.getpid():
            # What a forked child has is the parent's, and the lock may be held for ever.
            return None
        now = self._clock() if now is None else now
        with self._section:
            closed = self._settle()
            idle = [kept for kept in _idle(self._segments) if now - kept.idle_since >= IDLE_S]
            for kept in idle:
                self._drop(kept)
            since = min((kept.idle_since for kept in _idle(self._segments)), default=now)
            left = since + IDLE_S - now if self._segments else None
        self._close(closed + idle)
        return left

    def close(self) -> None:
        """Close what nobody uses, and give no more ranges; `trim` closes what is released later."""
        with self._section:
            self.max_bytes = 0
            closed = self._settle()
            for kept in list(self._segments.values()):
                self._retire(kept)
                if kept.used == 0:
                    self._drop(kept)
                    closed.append(kept)
        self._close(closed)

    def statistics(self) -> PoolStatistics:
        """What it has now, and what it has done."""
        with self._section:
            closed = self._settle()
            found = PoolStatistics(
                bytes_in_use=self._bytes_in_use,
                bytes_kept=self._bytes_kept,
                segments=len(self._segments),
                bytes_abandoned=sum(k.abandoned * k.range_bytes for k in self._segments.values()),
                made=self._made,
                refused=self._refused,
                short=self._short,
            )
        self._close(closed)
        return found

    def _on_ended(self, ended: Range, is_abandoned: bool) -> None:
        # In a finalizer, too: it only appends.
        self._ended.append((ended, is_abandoned, self._clock()))

    # ------------------------------------------------------------ with the lock held

    def _settle(self) -> list[Kept]:
        """Take back the ranges that ended; returns segments that are to be closed for that."""
        closed: list[Kept] = []
        while self._ended:
            ended, is_abandoned, when = self._ended.popleft()
            kept = ended.kept
            if ended.is_over:
                continue
            ended.is_over = True
            kept.used -= 1
            kept.idle_since = when
            self._bytes_in_use -= kept.range_bytes
            if is_abandoned:
                kept.abandoned += 1
                self._retire(kept)
            elif not kept.is_retired:
                self._free[kept.range_bytes].append((kept, ended.offset))
            if kept.is_retired and kept.used == 0:
                self._drop(kept)
                closed.append(kept)
        return closed

    def _take(self, wanted: int, size: int) -> Range | None:
        range_bytes = wanted
        while range_bytes <= wanted * MOST_OVERSIZE:
            if free := self._free.get(range_bytes):
                kept, offset = free[-1]
                found = Range(
                    kept, offset, size, self._on_ended
                )  # first, for it may find no memory
                del free[-1]
                kept.used += 1
                self._bytes_in_use += range_bytes
                return found
            range_bytes = size_class(range_bytes + 1)
        return None

    def _plan(self, wanted: int) -> tuple[int, int, list[Kept]]:
        """How many new ranges are made at once and by a thread, and which segments make room.

        None at once if there is no room; those that will be made are counted from here on.
        """
        have = sum(
            kept.memory.size for kept in self._segments.values() if kept.range_bytes == wanted
        )
        target = min(max(FIRST_SEGMENT_BYTES, have), LARGEST_SEGMENT_BYTES)
        idle = sorted(_idle(self._segments), key=lambda kept: kept.idle_since)
        left = self.max_bytes - self._bytes_kept
        could = left + sum(kept.memory.size for kept in idle)
        if could < wanted:
            self._refused += 1
            return 0, 0, []
        # Others are closed for one range, but not for more than is needed now.
        now, later = self._maker.share_out(wanted, max(1, min(target, left) // wanted))
        victims = []
        while left < wanted:
            victims.append(idle.pop(0))
            left += victims[-1].memory.size
            self._drop(victims[-1])
        self._bytes_kept += (now + later) * wanted
        return now, later, victims

    def _retire(self, kept: Kept) -> None:
        if not kept.is_retired:
            kept.is_retired = True
            free = self._free.get(kept.range_bytes, [])
            free[:] = [each for each in free if each[0] is not kept]

    def _drop(self, kept: Kept) -> None:
        self._retire(kept)
        del self._segments[kept.number]
        self._bytes_kept -= kept.memory.size

    def _add(self, memory: Segment, range_bytes: int) -> Kept:
        """A new segment, whose bytes are counted already."""
        self._made += 1
        self._last_number += 1
        kept = Kept(self._last_number, memory, range_bytes, self._clock())
        self._segments[kept.number] = kept
        if self.max_bytes == 0:  # closed meanwhile
            kept.is_retired = True
        else:
            offsets = range(0, memory.size, range_bytes)
            # Below those that others released meanwhile, which are warm.
            free = self._free.setdefault(range_bytes, [])
            free[:0] = [(kept, offset) for offset in reversed(offsets)]
        return kept

    # ------------------------------------------------------------ without it

    def _grow(self, range_bytes: int, count: int, size: int) -> Range | None:
        """Make a segment, whose bytes are counted already, and take its first range."""
        try:
            memory = self._maker.make(count * range_bytes)
            if memory is None and count > 1:  # it may do for the one that is needed
                memory = self._maker.make(range_bytes)
                with self._section:
                    self._bytes_kept -= (count - 1) * range_bytes
                count = 1
        except BaseException:  # an interrupt, in the user's thread
            with self._section:
                self._bytes_kept -= count * range_bytes
            raise
        with self._section:
            if memory is None:
                self._bytes_kept -= range_bytes
                self._short += 1
                return None
            kept = self._add(memory, range_bytes)
            found = Range(
                kept, 0, size, self._on_ended
            )  # if it finds no memory, the range stays free
            if not kept.is_retired:
                self._free[range_bytes].remove((kept, 0))
            kept.used = 1
            self._bytes_in_use += range_bytes
        self._on_made()
        return found

    def _on_made_beside(self, range_bytes: int, count: int, memory: Segment | None) -> None:
        """A thread has made a segment, whose bytes are counted already; or could not."""
        closed = []
        with self._section:
            if memory is None:
                self._bytes_kept -= count * range_bytes
                return
            kept = self._add(memory, range_bytes)
            if kept.is_retired:
                self._drop(kept)
                closed.append(kept)
        self._on_made()
        self._close(closed)

    def _close(self, segments: list[Kept]) -> None:
        for kept in segments:
            kept.memory.close()
            self._on_closed(kept.number)


def _idle(segments: dict[int, Kept]) -> Iterator[Kept]:
    return (kept for kept in segments.values() if kept.used == 0)
