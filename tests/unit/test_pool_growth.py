"""New memory on an event loop: little at once, the rest by a thread, and all of it is counted."""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serve_grpc.shared_memory import maker
from serve_grpc.shared_memory.maker import LOOP_BYTES
from serve_grpc.shared_memory.pool import LARGEST_SEGMENT_BYTES, SegmentPool
from serve_grpc.shared_memory.ranges import Range
from serve_grpc.shared_memory.segments import Segment, create
from tests.ray.waiting import eventually
from tests.unit.shared_memory_ends import MIB, needs_memfd, pool_of

pytestmark = needs_memfd


class Made:
    """Segments that are made, by the thread that makes them. Those of other threads may wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here: list[int] = []
        self.beside: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        me = threading.get_ident()

        def make(size: int) -> Segment:
            if threading.get_ident() == me:
                self.here.append(size)
            else:
                assert self.go.wait(20)
                self.beside.append(size)
                if self.error is not None:
                    raise self.error
            return create(size)

        monkeypatch.setattr(maker, "create", make)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def taken(pool: SegmentPool, size: int) -> Range:
    found = pool.allocate(size)
    assert found is not None
    return found


def on_a_loop(work: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return work()

    return asyncio.run(main())


def warm(pool: SegmentPool, size: int, in_use: int) -> list[Range]:
    """A class that has `in_use` bytes, all of them in use."""
    return [taken(pool, size) for _ in range(in_use // size)]


def settled(pool: SegmentPool) -> None:
    """No thread makes anything."""
    eventually(lambda: not pool._maker.growing)


def test_on_a_loop_little_is_made_at_once_and_a_thread_makes_the_rest(made: Made) -> None:
    pool = pool_of(max_bytes=512 * MIB)
    held = warm(pool, MIB, 32 * MIB)
    made.here.clear()
    held.append(on_a_loop(lambda: taken(pool, MIB)))
    assert made.here == [LOOP_BYTES]
    settled(pool)
    assert made.beside == [32 * MIB - LOOP_BYTES]
    assert pool.statistics().bytes_kept == 64 * MIB
    made.here.clear()
    held += on_a_loop(lambda: warm(pool, MIB, 31 * MIB))
    assert made.here == []  # it was there
    assert len({(each.number, each.offset) for each in held}) == 64
    pool.close()


def test_elsewhere_all_is_made_at_once(made: Made) -> None:
    pool = pool_of(max_bytes=512 * MIB)
    held = warm(pool, MIB, 33 * MIB)
    assert max(made.here) == 32 * MIB
    assert (made.beside, len(held)) == ([], 33)
    pool.close()


def test_a_single_range_is_made_at_once_however_large(made: Made) -> None:
    pool = pool_of(max_bytes=512 * MIB)
    assert on_a_loop(lambda: taken(pool, 100 * MIB).size) == 100 * MIB
    assert (made.here, made.beside) == ([112 * MIB], [])
    assert 112 * MIB > LARGEST_SEGMENT_BYTES
    pool.close()


def test_one_thread_makes_memory_of_one_class_and_nobody_waits_for_it(made: Made) -> None:
    pool = pool_of(max_bytes=512 * MIB)
    held = warm(pool, MIB, 32 * MIB)
    made.here.clear()
    made.go.clear()
    held += on_a_loop(lambda: warm(pool, MIB, 12 * MIB))
    assert made.here == [LOOP_BYTES] * 3
    made.go.set()
    settled(pool)
    assert made.beside == [32 * MIB - LOOP_BYTES]
    assert pool.statistics().bytes_kept == 32 * MIB + 2 * LOOP_BYTES + 32 * MIB
    pool.close()


def test_what_a_thread_cannot_make_is_not_counted(made: Made) -> None:
    pool = pool_of(max_bytes=512 * MIB)
    held = warm(pool, MIB, 32 * MIB)
    made.error = OSError(28, "No space left on device")
    held.append(on_a_loop(lambda: taken(pool, MIB)))
    settled(pool)
    assert made.beside != []
    assert pool.statistics().bytes_kept == 32 * MIB + LOOP_BYTES
    pool.close()


def test_without_a_thread_there_is_what_is_needed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    pool = pool_of(max_bytes=512 * MIB)
    held = warm(pool, MIB, 32 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", no_more)
        held.append(on_a_loop(lambda: taken(pool, MIB)))
    assert pool.statistics().bytes_kept == 32 * MIB + LOOP_BYTES
    assert not pool._maker.growing
    pool.close()


def test_what_comes_after_the_pool_was_closed_goes_at_once(made: Made) -> None:
    closed: list[int] = []
    pool = pool_of(max_bytes=512 * MIB, on_closed=closed.append)
    held = warm(pool, MIB, 32 * MIB)
    made.go.clear()
    held.append(on_a_loop(lambda: taken(pool, MIB)))
    pool.close()
    assert closed == []
    made.go.set()
    settled(pool)
    eventually(lambda: len(closed) == 1)
    assert pool.statistics().bytes_kept == 32 * MIB + LOOP_BYTES
    while held:
        held.pop().release()
    pool.trim()
    assert pool.statistics().bytes_kept == 0
