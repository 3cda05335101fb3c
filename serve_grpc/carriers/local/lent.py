"""What the peer of a local link reads of this process's memory, and of memory that was lent to it.

The peer knows segments by numbers of this link. A range is lent once at a time under one number:
for the peer's writes are private to a mapping, and one number is one mapping. A piece of another
process, passed on to the same peer in several calls, therefore gets further numbers. Invariants: a
lent piece is kept until it is given back, and one that never is, is never written to again
(`Lendable.lend`); the peer hears that a segment is no more only when it has given back all of it,
so it never has more of them than are counted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from serve_grpc.carriers.local.framing import (
    FORGOTTEN,
    NUMBER_BODY,
    RANGE_BODY,
    SEGMENT,
    SEGMENT_BODY,
)
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory.mappings import MAX_SEGMENTS
from serve_grpc.shared_memory.pieces import Lendable, range_of

__all__ = ["Frames", "Lent"]

MAX_FOREIGN = MAX_SEGMENTS // 2
"""Segments of other processes that the peer knows: each costs it a descriptor."""


class Frames(Protocol):
    """How the ends talk about memory."""

    def send(self, kind: int, body: bytes) -> None:
        """Send a frame; nothing once the link is lost."""

    def send_descriptor(self, kind: int, body: bytes, descriptor: int) -> bool:
        """Send a frame with a descriptor now; False if that cannot be."""


class _Known:
    """A segment that the peer knows.

    Attributes:
        number: On this link.
        source: As of `Lendable.number`.
        size: In bytes.
        lent: How many of its ranges the peer has.
        is_gone: The peer is told to forget it as soon as it has none.
    """

    __slots__ = ("is_gone", "lent", "number", "size", "source")

    def __init__(self, number: int, source: int, size: int) -> None:
        self.number = number
        self.source = source
        self.size = size
        self.lent = 0
        self.is_gone = False

    @property
    def is_foreign(self) -> bool:
        """Whether it is another process's."""
        return self.source < 0


class Lent:
    """The ranges and segments of one peer. Lives on the link's loop.

    Args:
        frames: To the peer.
        max_bytes: The most that the peer may hold, in bytes; and the most that segments of other
            processes may have together.
    """

    def __init__(self, frames: Frames, max_bytes: int) -> None:
        self._frames = frames
        self._max_bytes = max_bytes
        self._bytes = 0
        self._parts: dict[tuple[int, int], memoryview] = {}
        self._known: dict[int, _Known] = {}
        self._by_source: dict[int, list[_Known]] = {}
        self._last_number = 0

    def __len__(self) -> int:
        """How many ranges are lent."""
        return len(self._parts)

    def lend(self, part: memoryview) -> Place | None:
        """As of `LinkMemory`."""
        found = range_of(part)
        # Who takes too much gets bytes.
        if found is None or self._bytes + found.size > self._max_bytes:
            return None
        known = self._unused(found)
        if known is None:
            return None
        known.lent += 1
        found.lend()
        self._parts[known.number, found.offset] = part
        self._bytes += found.size
        return Place(known.number, found.offset, found.size)

    def give_back(self, body: bytes, *, is_abandoned: bool) -> bool:
        """The peer has let go of ranges.

        Args:
            body: Which ones.
            is_abandoned: Somebody it has lent them on to may still read them.

        Returns:
            Whether `tell_gone` is to be called, soon: not from here, for a frame is being read.

        Raises:
            ValueError: It has none of them.
        """
        is_gone = False
        for number, offset in RANGE_BODY.iter_unpack(body):
            part = self._parts.pop((number, offset), None)
            if part is None:
                raise ValueError(f"range {offset} of segment {number} is not lent")
            self._bytes -= len(part)
            if not is_abandoned:
                found = range_of(part)
                assert found is not None
                found.give_back()
            known = self._known[number]
            known.lent -= 1
            is_gone = is_gone or known.is_gone
        return is_gone

    def forget(self, source: int) -> None:
        """A segment is no more. Args: As of `Lendable.number`."""
        for known in self._by_source.pop(source, ()):
            known.is_gone = True
        self.tell_gone()

    def tell_gone(self) -> None:
        """Tell the peer of segments that are no more, and of which it has given back all."""
        for known in tuple(self._known.values()):
            if known.is_gone and not known.lent:
                self._drop(known)

    def close(self) -> None:
        """The peer is lost; what it has it may still read, and it is not given back."""
        self._parts.clear()

    def _unused(self, found: Lendable) -> _Known | None:
        """The segment, under a number under which this range of it is not lent; None if none."""
        names = self._by_source.get(found.number, ())
        for known in names:
            if (known.number, found.offset) not in self._parts:
                return known if found.is_lendable else None
        if not found.is_lendable or (names and found.number > 0):
            return None
        return self._introduce(found)

    def _introduce(self, found: Lendable) -> _Known | None:
        known = _Known(self._last_number + 1, found.number, found.segment_bytes)
        if known.is_foreign and not self._makes_room(known.size):
            return None
        if len(self._known) >= MAX_SEGMENTS:
            return None
        body = SEGMENT_BODY.pack(known.number, known.size)
        if not self._frames.send_descriptor(SEGMENT, body, found.fd):
            return None
        self._last_number = known.number
        self._known[known.number] = known
        self._by_source.setdefault(known.source, []).append(known)
        return known

    def _makes_room(self, size: int) -> bool:
        """Whether the peer may know one more segment of others; unused ones go, oldest first."""
        count, total = 0, size
        for known in self._foreign():
            count += 1
            total += known.size
        for known in tuple(self._foreign()):
            if count < MAX_FOREIGN and total <= self._max_bytes:
                break
            if not known.lent:
                self._by_source[known.source].remove(known)
                self._drop(known)
                count -= 1
                total -= known.size
        return count < MAX_FOREIGN and total <= self._max_bytes

    def _foreign(self) -> Iterator[_Known]:
        return (known for known in self._known.values() if known.is_foreign)

    def _drop(self, known: _Known) -> None:
        del self._known[known.number]
        self._frames.send(FORGOTTEN, NUMBER_BODY.pack(known.number))
