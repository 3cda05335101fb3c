"""One segment of a peer, mapped here, and the ranges of it that were lent to this process.

A range may be lent on to peers of this process (`pieces.Lendable`) for as long as nobody here has
opened it, or written to it (`untouched`); its owner hears that it is free only when they have given
it back. Invariant: who reads a range in place and who lends the same view on exclude each other,
for good: what is lent on never changes.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from typing import Any

from serve_grpc.shared_memory.segments import map_fd, read_range

__all__ = ["BorrowedRange", "Mapping"]


class _Descriptor:
    """Is closed when nothing refers to it any more: neither its mapping, nor a view."""

    __slots__ = ("_close", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close = os.close  # when the interpreter ends, `os` may be gone first

    def __del__(self) -> None:
        self._close(self.fd)


_PASSED_ON = object()


class BorrowedRange:
    """Is a `payload.Origin`, and a `pieces.Lendable` once it is passed on. A view keeps it.

    Attributes:
        offset: Where it begins in the segment, in bytes.
        size: In bytes.
    """

    __slots__ = ("_first_use", "_lent", "_mapping", "offset", "size")

    def __init__(self, mapping: Mapping, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        self._mapping = mapping
        self._first_use: dict[str, object] = {}
        self._lent: list[None] = []

    @property
    def is_new(self) -> bool:
        """As of `payload.Origin`."""
        return not self._first_use

    def claim(self) -> bool:
        """As of `payload.Origin`."""
        reader = object()
        # In one step, as in `pass_on`: two threads may ask at once.
        return self._first_use.setdefault("use", reader) is reader

    def pass_on(self) -> bool:
        """As of `payload.Origin`."""
        self._mapping.is_passed_on = True
        return self._first_use.setdefault("use", _PASSED_ON) is _PASSED_ON

    @property
    def is_owned(self) -> bool:
        """Whether its owner is there, and hears of who it is lent on to."""
        return not self._mapping.is_gone

    @property
    def is_lendable(self) -> bool:
        """As of `Lendable`."""
        return self.is_owned and self._first_use.get("use") is _PASSED_ON

    @property
    def number(self) -> int:
        """As of `Lendable`."""
        return self._mapping.lent_as

    @property
    def fd(self) -> int:
        """As of `Lendable`."""
        return self._mapping.descriptor.fd

    @property
    def segment_bytes(self) -> int:
        """As of `Lendable`."""
        return self._mapping.size

    @property
    def is_lent(self) -> bool:
        """Whether a peer was shown it, and has not given it back.

        A link keeps a view of what it has lent. So if this is true and the last view is gone, the
        link has ended, and its peer may read on: the owner must never write to the range again.
        """
        return bool(self._lent)

    def lend(self) -> None:
        """As of `Lendable`."""
        self._lent.append(None)  # a list, as in `Range`

    def give_back(self) -> None:
        """As of `Lendable`."""
        self._lent.pop()

    def shown_again(self) -> Any:
        """A ctypes array over the whole segment, in a mapping that nobody may write to.

        Raises:
            OSError: This process cannot map more, or has no descriptor left.
        """
        self._mapping.is_passed_on = True
        return self._mapping.holds.from_buffer(self._mapping.second())

    def read(self) -> bytearray:
        """As of `payload.Origin`."""
        # Of the segment, where nobody writes while a view lives: what is written to a view is in
        # private pages of the mapping.
        return read_range(self.fd, self.offset, self.size)


_numbers = itertools.count(-1, -1)


class Mapping:
    """One segment of the peer.

    Attributes:
        lent_as: Its number where it is lent on: below zero, for a pool numbers from 1.
        is_passed_on: Whether peers may have heard of it.
        is_gone: Whether no more of it is lent on: its owner has closed it, or is lost.
        holds: The type of what keeps a view's range: a ctypes array over the whole segment. Other
            than a mapping it can be made anew for each range, without a system call, and its end
            be watched. One type for each segment: a type is not freed before the next full
            garbage collection.
        shown: Of `second`, once it was asked for.
        taken: The pages of ranges that live, one bit each.
        live: How many ranges live.
    """

    __slots__ = (
        "address",
        "descriptor",
        "holds",
        "is_gone",
        "is_passed_on",
        "is_removed",
        "lent_as",
        "live",
        "memory",
        "number",
        "shown",
        "size",
        "taken",
    )

    def __init__(self, number: int, fd: int, memory: mmap.mmap) -> None:
        self.number = number
        self.memory = memory
        self.size = len(memory)
        self.holds: Any = ctypes.c_ubyte * self.size
        self.address = ctypes.addressof(self.holds.from_buffer(memory))
        self.taken = 0
        self.live = 0
        self.is_removed = False
        self.is_passed_on = False
        self.is_gone = False
        self.lent_as = next(_numbers)
        self.descriptor = _Descriptor(fd)
        self.shown: mmap.mmap | None = None

    def second(self) -> mmap.mmap:
        """The segment once more: nobody writes there, so it always shows the owner's pages.

        Raises:
            OSError: As of `segments.map_fd`.
        """
        # Two threads may both make one; that does no harm.
        if self.shown is None:
            self.shown = map_fd(self.descriptor.fd, self.size)
        return self.shown
