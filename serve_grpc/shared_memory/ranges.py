"""Ranges of segments: what a pool gives, for one piece of a payload at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_grpc.shared_memory.segments import Segment

__all__ = ["Kept", "PoolStatistics", "Range"]


@dataclass(frozen=True)
class PoolStatistics:
    """What a pool has now, and what it has done.

    Attributes:
        bytes_in_use: In ranges that are not released, in bytes, whole ranges.
        bytes_kept: In segments, in use or not.
        segments: How many segments there are.
        bytes_abandoned: Of those kept, in ranges that a lost peer may still read. They are not
            counted any more once their segment is closed here.
        made: Segments made so far.
        refused: Ranges not given because the pool was full.
        short: Ranges not given because memory or descriptors of the system were short.
    """

    bytes_in_use: int = 0
    bytes_kept: int = 0
    segments: int = 0
    bytes_abandoned: int = 0
    made: int = 0
    refused: int = 0
    short: int = 0


class Kept:
    """A segment of the pool, cut into ranges of one class."""

    __slots__ = ("abandoned", "idle_since", "is_retired", "memory", "number", "range_bytes", "used")

    def __init__(self, number: int, memory: Segment, range_bytes: int, now: float) -> None:
        self.number = number
        self.memory = memory
        self.range_bytes = range_bytes
        self.used = 0  # ranges that are not released
        self.abandoned = 0  # ranges that never will be
        self.is_retired = False  # no range of it is given any more
        self.idle_since = now


class Range:
    """A part of a segment, for one payload, until it is released.

    Args:
        kept: The segment.
        offset, size: Where.
        on_ended: Called when it is released or abandoned, with whether it is the latter, each time
            that this is said; also by finalizers.

    Attributes:
        view: Its `size` bytes, writable. Not to be used after the release.
        number: Of its segment; never given to another segment of this pool.
        offset: Where it begins in the segment, in bytes: a page begins there.
        size: In bytes, as asked for.
        is_lendable: As of `pieces.Lendable`.
        kept, is_over: For the pool: its segment; whether the pool has taken it back.
    """

    is_lendable = True

    __slots__ = (
        "_lent",
        "_on_ended",
        "is_over",
        "kept",
        "number",
        "offset",
        "size",
        "view",
    )

    def __init__(
        self, kept: Kept, offset: int, size: int, on_ended: Callable[[Range, bool], object]
    ) -> None:
        self.kept = kept
        self.is_over = False
        self._on_ended = on_ended
        self._lent: list[None] = []
        self.number = kept.number
        self.offset = offset
        self.size = size
        self.view = kept.memory.view[offset : offset + size]

    def __repr__(self) -> str:
        return f"<Range {self.number}:{self.offset}+{self.size}>"

    @property
    def fd(self) -> int:
        """The descriptor of the segment, for peers that do not know it yet; not to be closed."""
        return self.kept.memory.fd

    @property
    def segment_bytes(self) -> int:
        """The size of the segment."""
        return self.kept.memory.size

    def hold(self) -> Any:
        """A ctypes array over the range, and what is left of its size class behind it."""
        # One type for each class of ranges: ctypes keeps the types it has made.
        kind = ctypes.c_ubyte * self.kept.range_bytes
        return kind.from_buffer(self.kept.memory.view, self.offset)

    def let_go(self) -> None:
        """As `release`, for a finalizer: what was made of `view` and `hold` is gone.

        As `abandon` if it is lent: then a link has ended, and its peer may read on.
        """
        self._end(is_abandoned=bool(self._lent))

    def lend(self) -> None:
        """A peer is shown it. Until that has given it back it is not used again, whatever ends."""
        self._lent.append(None)  # a list, for several links on several threads may lend it

    def give_back(self) -> None:
        """One of those who were shown it reads it no more."""
        self._lent.pop()

    def release(self) -> None:
        """Nobody reads it any more, so it may be written again. A second call does nothing.

        Raises:
            BufferError: An array made of `view` lives on. The range is not released. Slices of
                `view` are not seen: whoever makes one lets it go before.
        """
        self.view.release()
        self._end(is_abandoned=False)

    def abandon(self) -> None:
        """It was shown to a peer that is lost without having said that its views are gone.

        What the peer still reads may not change: the range is never used again, and its segment
        goes as soon as nobody else uses it. Who still writes to it does no harm. A second call does
        nothing.
        """
        self._end(is_abandoned=True)

    def _end(self, is_abandoned: bool) -> None:
        self._on_ended(self, is_abandoned)
