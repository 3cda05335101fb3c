"""Two ends of shared memory in one process, for tests: a pool's ranges, and mappings of them."""

from __future__ import annotations

import os

import pytest

from serve_grpc.shared_memory.mappings import Mappings
from serve_grpc.shared_memory.pool import SegmentPool
from serve_grpc.shared_memory.ranges import Range
from serve_grpc.shared_memory.segments import is_available

__all__ = [
    "MIB",
    "SIZE",
    "Clock",
    "Ends",
    "is_open",
    "needs_memfd",
    "open_descriptors",
    "pool_of",
    "taken",
]

MIB = 1024 * 1024
SIZE = 256 * 1024

needs_memfd = pytest.mark.skipif(not is_available(), reason="shared memory is Linux's")


def is_open(fd: int) -> bool:
    """Whether a descriptor is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pool_of(max_bytes: int = 64 * MIB, **arguments: object) -> SegmentPool:
    """A pool that does not ask how much memory the machine has."""
    arguments = {"clock": Clock(), "has_room": lambda size: True, **arguments}
    return SegmentPool(max_bytes, **arguments)  # type: ignore[arg-type]


def taken(pool: SegmentPool, size: int) -> Range:
    """A range that there has to be."""
    found = pool.allocate(size)
    assert found is not None
    return found


class Ends:
    """A sender and a receiver; what is posted between them is in `released`."""

    def __init__(self, max_bytes: int = 64 * MIB) -> None:
        self.pool = pool_of(max_bytes)
        self.released: list[tuple[int, int, int]] = []
        self.mappings = Mappings(max_bytes, lambda *place: self.released.append(place))
        self.sent: dict[tuple[int, int], Range] = {}
        self.known: set[int] = set()

    def send(self, data: bytes) -> tuple[int, int, int]:
        """Write `data` to a range, and show the receiver its segment; returns where it is."""
        written = self.pool.allocate(len(data))
        assert written is not None
        written.view[:] = data
        if written.number not in self.known:
            self.known.add(written.number)
            self.mappings.add(written.number, os.dup(written.fd), written.segment_bytes)
        self.sent[written.number, written.offset] = written
        return written.number, written.offset, written.size

    def carry(self, data: bytes) -> memoryview:
        """The receiver's view on `data`."""
        return self.mappings.take(*self.send(data))

    def settle(self) -> int:
        """Carry the releases back; returns how many there were."""
        self.mappings.settle()
        count = len(self.released)
        while self.released:
            number, offset, _ = self.released.pop()
            self.sent.pop((number, offset)).release()
        return count

    def close(self) -> None:
        """End both."""
        self.settle()
        self.mappings.close()
        self.pool.close()
