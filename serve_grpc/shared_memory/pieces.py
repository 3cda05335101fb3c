"""Pieces of payloads in shared memory of this process, for peers of this node to read.

A piece is a view, and its range is the pool's again when the last view of it is collected: a
payload holds its pieces, and so does each link for as long as its peer reads them. Other than of
ranges, nobody has to keep count. What arrived in the memory of another process, and is passed on
unopened or unwritten, is a piece as well: that process hears of its end from `mappings`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from serve_grpc.shared_memory.borrowed import BorrowedRange
from serve_grpc.shared_memory.copying import copy_all
from serve_grpc.shared_memory.pool import SegmentPool
from serve_grpc.shared_memory.ranges import Range
from serve_grpc.shared_memory.untouched import UNTOUCHED_BYTES, Untouched, untouched

__all__ = ["Lendable", "Pieces", "range_of"]


class Lendable(Protocol):
    """A range that peers can be lent, of this process or lent to it.

    Attributes: As of `Range`. `number` tells segments of all owners apart.
        is_lendable: Whether it may be lent now; what is lent stays so.
    """

    @property
    def number(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def fd(self) -> int: ...
    @property
    def segment_bytes(self) -> int: ...
    @property
    def is_lendable(self) -> bool: ...

    def lend(self) -> None:
        """A peer is shown it. Until that has given it back nobody writes there, whatever ends."""

    def give_back(self) -> None:
        """One of those who were shown it reads it no more."""


class _Watch(weakref.ref[Any]):
    """Sees the end of a piece. Args: what its views keep alive, who is told, and of which range."""

    __slots__ = ("range",)

    range: Range

    __hash__ = object.__hash__  # ctypes arrays have none
    __eq__ = object.__eq__


class Pieces:
    """Is a `payload.Memory`. Any thread may call. Args: `pool`, where the ranges are from."""

    def __init__(self, pool: SegmentPool) -> None:
        self._pool = pool
        self._watches: set[_Watch] = set()

    def keep(self, piece: bytes | memoryview) -> memoryview | None:
        """As of `Memory`."""
        if type(piece) is memoryview:
            found = _passed_on(piece)
            if found is None and len(piece) >= UNTOUCHED_BYTES:
                found = untouched(piece)
            if found is not None:
                return found
        return self._copied([piece])

    def gather(self, pieces: Sequence[memoryview]) -> memoryview | None:
        """As of `Memory`."""
        return self._copied(pieces)

    def _copied(self, pieces: Sequence[bytes | memoryview]) -> memoryview | None:
        found = self._pool.allocate(sum(map(len, pieces)))
        if found is None:
            return None
        try:
            copy_all(found.view, pieces)
            return self._watched(found)
        except BaseException:  # no memory, or an interrupt in the user's thread
            found.let_go()
            raise

    def _watched(self, found: Range) -> memoryview:
        # A ctypes array, for its end can be watched, and views of views keep it alive as well.
        hold = found.hold()
        hold.range = found
        watch = _Watch(hold, self._on_collected)
        watch.range = found
        self._watches.add(watch)
        return memoryview(hold).cast("B")[: found.size]

    def _on_collected(self, watch: weakref.ref[Any]) -> None:
        # A finalizer: it only appends, as `Range.let_go` does.
        assert isinstance(watch, _Watch)
        watch.range.let_go()
        self._watches.discard(watch)


def range_of(view: memoryview) -> Lendable | None:
    """The range that a whole piece lies in; None for any other view."""
    found: Range | Untouched | BorrowedRange | None = getattr(view.obj, "range", None)
    if not isinstance(found, (Range, Untouched)):
        found = getattr(view.obj, "origin", None)
        if not isinstance(found, BorrowedRange):
            return None
    return found if len(view) == found.size else None


def _passed_on(view: memoryview) -> memoryview | None:
    """The piece that `view` shows, if it is passed on as it arrived."""
    piece = view.obj if type(view.obj) is memoryview else view  # a pickler's view is one of a view
    found = getattr(piece.obj, "origin", None)
    if isinstance(found, BorrowedRange) and found.is_lendable and len(piece) == found.size:
        return piece if len(view) == found.size else None
    return None
