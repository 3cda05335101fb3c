"""The steps of a payload through shared memory, and what could be done in their place.

Each step is prepared anew and timed alone, in CPU time of this thread, the kernel's work for it
included: other work on the machine disturbs that less than wall time. To read or to write means to
touch one byte of each page, so that the memory's speed is left out and the page faults are not.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_grpc.shared_memory.copying import copy_into
from serve_grpc.shared_memory.mappings import Mappings
from serve_grpc.shared_memory.pool import SegmentPool
from serve_grpc.shared_memory.private_pages import PrivatePages
from serve_grpc.shared_memory.segments import Segment, create, map_fd

__all__ = ["KIB", "SIZES", "Row", "measure"]

KIB = 1024
SIZES = tuple(each * KIB for each in (64, 128, 256, 512, 1024, 10 * 1024, 100 * 1024))
PAGE = mmap.PAGESIZE
STREAM_PIECE_BYTES = 64 * KIB
ROUNDS = {size: 7 if size > 64 * 1024 * KIB else 31 for size in SIZES}


@dataclass(frozen=True)
class Row:
    """What one step costs.

    Attributes:
        name: The step.
        size: Of the payload, in bytes.
        least_us, median_us: CPU time of a thread, in microseconds.
    """

    name: str
    size: int
    least_us: float
    median_us: float


def measure(size: int) -> Iterator[Row]:
    """All steps for one size."""
    for steps in (_sending, _receiving, _whole_way):
        for name, prepare, run in steps(size):
            times = sorted(_timed(prepare, run) for _ in range(ROUNDS[size]))
            yield Row(name, size, times[0] * 1e6, times[len(times) // 2] * 1e6)


Step = tuple[str, Callable[[], Any], Callable[[Any], Any]]


def _timed(prepare: Callable[[], Any], run: Callable[[Any], Any]) -> float:
    given = prepare()
    started = time.thread_time()
    kept = run(given)  # what it returns is freed later: that is not a part of the step
    ended = time.thread_time()
    del kept
    return ended - started


def _sending(size: int) -> Iterator[Step]:
    data = os.urandom(PAGE) * (size // PAGE)
    made: list[Segment] = []

    def fresh() -> None:
        made.append(create(size))

    def close_made() -> None:
        while made:
            made.pop().close()

    def cold(_: None) -> None:
        fresh()
        made[-1].view[:] = data

    yield "make a segment", close_made, lambda _: fresh()
    yield "make a segment and copy", close_made, cold
    yield "make a file and write(2)", lambda: None, lambda _: _write_to_file(data)
    close_made()
    warm = create(size)
    warm.view[:] = data
    yield "copy into a warm range", lambda: None, lambda _: copy_into(warm.view, data)
    warm.close()
    yield "copy into fresh heap memory", lambda: None, lambda _: bytearray(data)


def _write_to_file(data: bytes) -> None:
    fd = os.memfd_create("bench", os.MFD_CLOEXEC)
    written = 0
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], written)
    os.close(fd)


def _read(view: Any) -> bytes:
    return bytes(memoryview(view)[::PAGE])


def _write(view: Any) -> None:
    pages = memoryview(view)[::PAGE]
    pages[:] = bytes(len(pages))


def _receiving(size: int) -> Iterator[Step]:
    segment = create(size)
    segment.view[:] = bytes(size)
    private = map_fd(segment.fd, size)
    shared = mmap.mmap(segment.fd, size, prot=mmap.PROT_READ)
    mappings = Mappings(size, lambda *_: None)
    mappings.add(1, os.dup(segment.fd), size)
    address = mappings._by_number[1].address
    pages = PrivatePages()

    def dropped(mapping: mmap.mmap) -> mmap.mmap:
        mapping.madvise(mmap.MADV_DONTNEED, 0, size)
        return mapping

    def was_read() -> mmap.mmap:
        _read(dropped(private))
        return private

    def was_written() -> mmap.mmap:
        _write(private)
        return private

    yield "map, privately", lambda: None, lambda _: map_fd(segment.fd, size)
    yield "take a view", lambda: None, lambda _: mappings.take(1, 0, size)
    yield "read: private, dropped before", lambda: dropped(private), _read
    yield "read: shared and read-only, first time", lambda: dropped(shared), _read
    yield "read: private, mapped before", was_read, _read
    yield "write: private, read before", was_read, _write
    yield "write: private, written before", was_written, _write
    yield "look for private pages", was_read, lambda _: pages.are_in(address, size)
    yield "drop pages that were read", was_read, dropped
    yield "drop pages that were written", was_written, dropped
    yield "copy out into fresh heap memory", lambda: _read(private), lambda _: bytearray(private)
    pages.close()
    mappings.close()
    segment.close()


def _whole_way(size: int) -> Iterator[Step]:
    data = os.urandom(PAGE) * (size // PAGE)
    released: list[tuple[int, int, int]] = []
    pool = SegmentPool(4 * size + (1 << 24), time.monotonic)
    mappings = Mappings(4 * size + (1 << 25), lambda *place: released.append(place))
    known = set()

    def carry(use: Callable[[Any], Any], _: None) -> None:
        sent = pool.allocate(size)
        assert sent is not None
        copy_into(sent.view, data)
        if sent.number not in known:
            known.add(sent.number)
            mappings.add(sent.number, os.dup(sent.fd), sent.segment_bytes)
        view = mappings.take(sent.number, sent.offset, size)
        use(view)
        del view
        mappings.settle()
        assert len(released) == 1
        released.clear()
        sent.release()

    yield "whole way, read", lambda: None, partial(carry, _read)
    yield "whole way, written", lambda: None, partial(carry, _write)
    yield "whole way, copied out", lambda: None, partial(carry, bytearray)
    mappings.close()
    pool.close()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def stream(_: None) -> bytearray:
        received = bytearray(size)
        for start in range(0, size, STREAM_PIECE_BYTES):
            one.sendall(memoryview(data)[start : start + STREAM_PIECE_BYTES])
            place = memoryview(received)[start : start + STREAM_PIECE_BYTES]
            while place:
                place = place[other.recv_into(place) :]
        return received

    yield "Unix socket, both ends", lambda: None, stream
    one.close()
    other.close()
