"""Payload bytes that lie in shared memory: a place in the frame instead of the bytes.

Only on links within one node, between two sides that both know them. A place names a range of a
segment of the sending process. Invariant: a range is not written to again until the receiver has
let go of it, or can no longer read it; the link keeps count of that.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["LinkMemory", "Place"]


class Place(NamedTuple):
    """Where bytes are. `offset` and `size` in bytes; segments are numbered from 1."""

    segment: int
    offset: int
    size: int


class LinkMemory(Protocol):
    """What the two ends of one link share beside their messages."""

    def lend(self, part: memoryview) -> Place | None:
        """Let the peer read a part of a payload, named by the message that is written next.

        Returns:
            Where it is; None if it is not in shared memory, or the peer may not be lent more. Then
            the bytes have to travel.
        """

    def borrow(self, place: Place) -> memoryview:
        """The bytes that the message just read has named; writable, and nobody else sees that.

        The peer is told when the last view of them is gone.

        Raises:
            ValueError: There is no such range, or this side still holds it: the peer lies.
        """
