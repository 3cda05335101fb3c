"""Arrays in memory of a peer that are sent on or sent back, and that nobody here has written to.

Their bytes are those of the peer's segment, and the kernel tells so (`private_pages`). So what is
sent is the range that they came in, without a copy. It is shown by a second mapping, which nobody
writes to: what the array's holder writes from now on is in private pages of the first one.
"""

from __future__ import annotations

import weakref
from typing import Any

from serve_grpc.shared_memory.borrowed import BorrowedRange
from serve_grpc.shared_memory.copying import address_of
from serve_grpc.shared_memory.private_pages import PrivatePages

__all__ = ["UNTOUCHED_BYTES", "Untouched", "arrived", "untouched"]

UNTOUCHED_BYTES = 1024 * 1024
"""From here on. To ask the kernel, and the receiver's first look at the pages, cost as much as a
copy of some hundred kilobytes."""

arrived: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""What keeps each borrowed range of this process, by where the range begins in memory."""


class Untouched:
    """Is a `pieces.Lendable`: a borrowed range that may have been opened.

    Args:
        origin: The range.
        hold: What keeps it; its owner does not write there as long as this lives.
    """

    __slots__ = ("_hold", "_origin")

    def __init__(self, origin: BorrowedRange, hold: Any) -> None:
        self._origin = origin
        self._hold = hold

    @property
    def is_lendable(self) -> bool:
        """As of `Lendable`."""
        return self._origin.is_owned

    @property
    def number(self) -> int:
        """As of `Lendable`."""
        return self._origin.number

    @property
    def offset(self) -> int:
        """As of `Lendable`."""
        return self._origin.offset

    @property
    def size(self) -> int:
        """As of `Lendable`."""
        return self._origin.size

    @property
    def fd(self) -> int:
        """As of `Lendable`."""
        return self._origin.fd

    @property
    def segment_bytes(self) -> int:
        """As of `Lendable`."""
        return self._origin.segment_bytes

    def lend(self) -> None:
        """As of `Lendable`."""
        self._origin.lend()

    def give_back(self) -> None:
        """As of `Lendable`."""
        self._origin.give_back()


def untouched(piece: memoryview) -> memoryview | None:
    """The same bytes as they lie in the peer's segment; None if they may be others, or only a part.

    Args:
        piece: Single bytes in one piece. Nobody writes to them meanwhile.
    """
    address = address_of(piece)
    hold = arrived.get(address)
    if hold is None:
        return None
    origin: BorrowedRange = hold.origin
    if origin.size != len(piece) or not origin.is_owned:
        return None
    pages = PrivatePages()  # of this call alone, for it is of one thread
    try:
        if pages.are_in(address, len(piece)) is not False:
            return None
    finally:
        pages.close()
    try:
        shown = origin.shown_again()
    except OSError:  # no addresses or descriptors are left
        return None
    shown.range = Untouched(origin, hold)
    return memoryview(shown).cast("B")[origin.offset : origin.offset + origin.size].toreadonly()
