"""The sender's side: warm ranges, their release, and what a lost peer may still read."""

from __future__ import annotations

import os
import pickle
import threading
import time
from typing import Any

import pytest

from serve_grpc.shared_memory import size_classes
from serve_grpc.shared_memory.section import Section
from serve_grpc.shared_memory.size_classes import size_class
from tests.fakes.peer_share import PeerShare
from tests.unit.shared_memory_ends import (
    MIB,
    SIZE,
    Clock,
    Ends,
    needs_memfd,
    pool_of,
    taken,
)

pytestmark = needs_memfd


class TestClasses:
    def test_they_hold_what_is_asked_for_and_waste_a_quarter_at_most(self) -> None:
        for size in [*range(1, 300_000, 997), 10**6, 10**7, 10**8, 2**20, 2**20 + 1, 2**30 - 1]:
            found = size_class(size)
            assert size <= found
            assert found == 64 * 1024 or found < size * 1.25
            assert found % 4096 == 0
            assert size_class(found) == found

    @pytest.mark.parametrize("page", [4096, 16384, 65536])
    def test_ranges_are_whole_pages_of_any_size(
        self, monkeypatch: pytest.MonkeyPatch, page: int
    ) -> None:
        monkeypatch.setattr(size_classes.mmap, "PAGESIZE", page)
        for size in (1, 65_536, 65_537, 100_000, 10**6, 10**7 + 1):
            assert size_class(size) % page == 0


class TestReuse:
    def test_what_was_used_last_is_used_first(self) -> None:
        pool = pool_of()
        first, second = taken(pool, SIZE), taken(pool, SIZE)
        assert (first.number, first.offset) != (second.number, second.offset)
        first.release()
        second.release()
        again = taken(pool, SIZE - 5)
        assert (again.number, again.offset) == (second.number, second.offset)
        assert len(again.view) == SIZE - 5
        pool.close()

    def test_a_warm_range_that_is_somewhat_larger_will_do(self) -> None:
        pool = pool_of()
        large = taken(pool, 8 * MIB)
        large.release()
        for size in (7 * MIB, 4 * MIB):
            found = taken(pool, size)
            assert (found.number, found.offset) == (large.number, large.offset)
            found.release()
        assert taken(pool, 3 * MIB).number != large.number
        pool.close()

    def test_segments_are_few_however_many_ranges_there_are(self) -> None:
        pool = pool_of(max_bytes=512 * MIB)
        ranges = [taken(pool, 2 * MIB) for _ in range(100)]
        assert pool.statistics().segments <= 10
        assert len({(each.number, each.offset) for each in ranges}) == 100
        for each in ranges:
            each.release()
        pool.close()

    def test_a_view_writes_only_its_own_range(self) -> None:
        pool = pool_of()
        ranges = [taken(pool, 100_000) for _ in range(8)]
        for index, each in enumerate(ranges):
            each.view[:] = bytes([index]) * 100_000
        for index, each in enumerate(ranges):
            assert each.view == bytes([index]) * 100_000
            assert os.pread(each.fd, 100_000, each.offset) == bytes([index]) * 100_000
        pool.close()


class TestRelease:
    def test_a_second_release_does_nothing(self) -> None:
        pool = pool_of()
        first = taken(pool, SIZE)
        first.release()
        first.release()
        other = taken(pool, SIZE)
        first.release()
        first.abandon()
        assert pool.statistics().bytes_in_use == SIZE
        third = taken(pool, SIZE)
        assert (third.number, third.offset) != (other.number, other.offset)
        pool.close()

    def test_a_range_that_is_still_written_to_is_not_released(self) -> None:
        pool = pool_of()
        found = taken(pool, SIZE)
        array = pickle.PickleBuffer(found.view)
        with pytest.raises(BufferError):
            found.release()
        assert pool.statistics().bytes_in_use == SIZE
        del array
        found.release()
        assert pool.statistics().bytes_in_use == 0
        pool.close()

    def test_a_released_view_cannot_be_written(self) -> None:
        pool = pool_of()
        found = taken(pool, SIZE)
        found.release()
        with pytest.raises(ValueError, match="released"):
            found.view[0] = 1
        pool.close()

    def test_many_threads_never_share_a_range(self) -> None:
        pool = pool_of(max_bytes=8 * MIB)
        wrong: list[object] = []

        def use(mark: int) -> None:
            for turn in range(300):
                found = pool.allocate(70_000 + turn % 3 * 50_000)
                if found is not None:
                    data = bytes([mark]) * found.size
                    found.view[:] = data
                    time.sleep(0)
                    if bytes(found.view) != data:
                        wrong.append(found)
                    found.release()

        threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        now = pool.statistics()
        assert (now.bytes_in_use, now.segments > 0) == (0, True)
        assert now.bytes_kept <= 8 * MIB
        pool.close()

    def test_a_finalizer_in_the_midst_of_the_pool_gets_nothing_and_may_release(self) -> None:
        pool = pool_of()
        held = taken(pool, SIZE)
        seen: list[Any] = []

        class Clumsy(Clock):
            def __call__(self) -> float:  # stands for a finalizer: called with the lock held
                if pool._section._depth and not seen:
                    seen.append(pool.allocate(10 * MIB))
                    held.release()
                return super().__call__()

        pool._clock = Clumsy()
        assert pool.allocate(5 * MIB) is not None
        assert seen == [None]
        assert pool.statistics().bytes_in_use == 5 * MIB
        pool.close()

    def test_a_section_tells_who_is_inside_already(self) -> None:
        section = Section()
        with section as outer:
            with section as inner:
                assert (outer, inner) == (True, False)
            with section as again:
                assert not again
        with section as later:
            assert later


class TestLostPeers:
    def test_what_a_lost_peer_may_still_read_is_never_written_again(self) -> None:
        closed: list[int] = []
        ends = Ends()
        pool = ends.pool = pool_of(on_closed=closed.append)
        share = PeerShare(pool, 8 * MIB)
        lost, other = share.allocate(SIZE), taken(pool, SIZE)
        assert lost is not None
        assert lost.number == other.number
        lost.view[:] = b"a" * SIZE
        ends.mappings.add(lost.number, os.dup(lost.fd), lost.segment_bytes)
        view = ends.mappings.take(lost.number, lost.offset, SIZE)
        writing = pickle.PickleBuffer(lost.view)  # does not hinder it
        share.close()
        assert share.allocate(SIZE) is None
        assert pool.statistics().bytes_abandoned == SIZE
        for _ in range(8):
            found = taken(pool, SIZE)
            assert found.number != lost.number
            found.view[:] = b"b" * SIZE
        assert closed == []  # the other range of that segment is in use
        other.release()
        pool.trim()
        assert closed == [lost.number]
        assert view == b"a" * SIZE
        del writing, view
        pool.close()
