"""Shared memory without any: what a serializer writes into, and what a session lends."""

from __future__ import annotations

from collections.abc import Sequence

from serve_grpc.protocol.places import Place

__all__ = ["HeapMemory", "TableMemory"]


class TableMemory:
    """Is a `LinkMemory`, for both ends. Lends what lies in a bytearray, and bytes it does not.

    Attributes:
        lent: Ranges that are lent, by their segment; each is a segment of its own.
    """

    def __init__(self) -> None:
        self.lent: dict[int, memoryview] = {}

    def lend(self, part: memoryview) -> Place | None:
        """As of `LinkMemory`."""
        if not isinstance(part.obj, bytearray):
            return None
        number = len(self.lent) + 1
        self.lent[number] = part
        return Place(number, 0, len(part))

    def borrow(self, place: Place) -> memoryview:
        """As of `LinkMemory`."""
        part = self.lent.get(place.segment)
        if part is None or place.offset + place.size > len(part):
            raise ValueError("there is no such range")
        return part[place.offset : place.offset + place.size]


class HeapMemory:
    """Is a `Memory`, on the heap.

    Args:
        room: Bytes that it takes, all together.

    Attributes:
        kept: What it took, in order.
    """

    def __init__(self, room: int = 2**62) -> None:
        self._room = room
        self.kept: list[bytearray] = []

    def keep(self, piece: bytes | memoryview) -> memoryview | None:
        """As of `Memory`."""
        if len(piece) > self._room:
            return None
        self._room -= len(piece)
        self.kept.append(bytearray(piece))
        return memoryview(self.kept[-1])

    def gather(self, pieces: Sequence[memoryview]) -> memoryview | None:
        """As of `Memory`."""
        return self.keep(b"".join(pieces))
