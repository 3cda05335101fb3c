"""The sender's side: how much it keeps, and what goes back."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_grpc.shared_memory import maker
from tests.descriptors import nothing_left_open
from tests.fakes.peer_share import PeerShare
from tests.unit.shared_memory_ends import (
    MIB,
    SIZE,
    Clock,
    Ends,
    is_open,
    needs_memfd,
    open_descriptors,
    pool_of,
    taken,
)

pytestmark = needs_memfd


class TestBounds:
    def test_a_full_pool_gives_nothing(self) -> None:
        pool = pool_of(max_bytes=4 * MIB)
        ranges = [taken(pool, MIB) for _ in range(4)]
        assert pool.allocate(MIB) is None
        assert pool.allocate(1) is None
        assert pool.statistics().refused == 2
        ranges[0].release()
        assert pool.allocate(MIB) is not None
        pool.close()

    def test_what_is_too_large_for_the_pool_is_not_tried(self) -> None:
        pool = pool_of(max_bytes=4 * MIB)
        assert pool.allocate(4 * MIB + 1) is None
        assert pool.statistics().made == 0

    def test_idle_segments_of_another_class_make_room(self) -> None:
        closed: list[int] = []
        pool = pool_of(max_bytes=4 * MIB, on_closed=closed.append)
        small = taken(pool, SIZE)
        small.release()
        large = taken(pool, 4 * MIB)
        assert closed == [small.number]
        assert pool.statistics().bytes_kept == 4 * MIB
        assert large.number != small.number
        pool.close()

    def test_no_memory_left_is_not_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(size: int) -> None:
            raise OSError(28, "No space left on device")

        pool = pool_of()
        with monkeypatch.context() as patch:
            patch.setattr(maker, "create", full)
            assert pool.allocate(SIZE) is None
        now = pool.statistics()
        assert (now.short, now.bytes_kept, now.bytes_in_use, now.segments) == (1, 0, 0, 0)
        assert pool.allocate(SIZE) is not None
        pool.close()

    @pytest.mark.parametrize("has_room", [lambda size: True, lambda size: size == SIZE])
    def test_an_interrupt_leaves_nothing_counted(
        self, monkeypatch: pytest.MonkeyPatch, has_room: Any
    ) -> None:
        def interrupted(size: int) -> None:
            raise KeyboardInterrupt

        pool = pool_of(has_room=has_room)
        share = PeerShare(pool, 8 * MIB)
        with monkeypatch.context() as patch:
            patch.setattr(maker, "create", interrupted)
            with pytest.raises(KeyboardInterrupt):
                share.allocate(SIZE)
        assert (pool.statistics().bytes_kept, share.bytes_held) == (0, 0)
        assert share.allocate(SIZE) is not None
        share.close()
        pool.close()

    def test_where_memory_is_short_a_segment_has_only_what_is_needed(self) -> None:
        pool = pool_of(has_room=lambda size: size <= SIZE)
        assert taken(pool, SIZE).segment_bytes == SIZE
        assert pool.statistics().bytes_kept == SIZE
        assert pool.allocate(MIB) is None
        assert pool.statistics().short == 1
        pool.close()

    def test_a_forked_child_gets_nothing(self) -> None:
        pool = pool_of()
        taken(pool, SIZE).release()
        child = os.fork()
        if child == 0:
            os._exit(0 if pool.allocate(SIZE) is None else 1)
        assert os.waitpid(child, 0)[1] == 0
        pool.close()


class TestTrim:
    def test_what_is_idle_for_thirty_seconds_goes_back(self) -> None:
        clock, closed = Clock(), []
        pool = pool_of(clock=clock, on_closed=closed.append)
        first, second = taken(pool, MIB), taken(pool, 2 * MIB)
        fd = first.fd
        first.release()
        clock.now += 29.9
        pool.trim()
        assert closed == []
        clock.now += 0.1
        pool.trim()
        assert closed == [first.number]
        assert not is_open(fd)
        assert pool.statistics().bytes_kept == second.segment_bytes
        second.release()
        pool.trim(clock.now + 30)
        assert pool.statistics().bytes_kept == 0

    def test_a_segment_in_use_stays(self) -> None:
        clock = Clock()
        pool = pool_of(clock=clock)
        held, other = taken(pool, SIZE), taken(pool, SIZE)
        assert held.number == other.number
        other.release()
        clock.now += 1000
        pool.trim()
        held.view[0] = 1
        assert pool.statistics().segments == 1
        pool.close()

    def test_a_closed_pool_gives_nothing_and_ends_with_the_last_range(self) -> None:
        pool = pool_of()
        with nothing_left_open():
            held, other = taken(pool, SIZE), taken(pool, 4 * MIB)
            other.release()
            pool.close()
            assert pool.allocate(SIZE) is None
            held.view[0] = 1
            assert pool.statistics().segments == 1
            held.release()
            pool.trim()
            assert pool.statistics().segments == 0


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.full)])  # 20 s
def test_many_payloads_leave_memory_and_descriptors_as_they_were(count: int) -> None:
    # In a process of its own: in this one, other tests' threads take memory meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        descriptors, memory = processes.submit(growth_after, count).result(timeout=120)
    assert descriptors == 0
    assert memory < 2 * MIB


def growth_after(count: int) -> tuple[int, int]:
    """How many more descriptors and bytes this process has after `count` payloads."""
    ends = Ends(max_bytes=16 * MIB)
    data = [bytes(size) for size in (70_000, 150_000, 300_000, 64_000)]

    def cycle(turns: int) -> None:
        for turn in range(turns):
            view = ends.carry(data[turn % 4])
            if turn % 8 == 0:
                view[turn % 60_000] = 1
            del view
            ends.settle()
        gc.collect()

    cycle(2000)
    descriptors, memory = open_descriptors(), resident_bytes()
    cycle(count)
    assert ends.pool.statistics().bytes_in_use == 0
    growth = open_descriptors() - descriptors, resident_bytes() - memory
    ends.close()
    return growth


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


IN_SMALL_CGROUP = """
import os, sys, time
from pathlib import Path
from serve_grpc.shared_memory.pool import SegmentPool
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
pool = SegmentPool(1 << 30, time.monotonic)
held = []
while (found := pool.allocate(8 << 20)) is not None:
    found.view[:] = b"x" * found.size
    held.append(found)
    assert len(held) < 100
print(len(held), pool.statistics().short)
"""


@pytest.mark.full  # another process imports all of the package
def test_the_limit_of_a_cgroup_is_seen_before_the_kernel_kills(tmp_path: Path) -> None:
    group, limit_file = small_cgroup()
    try:
        limit_file.write_text(str(192 * MIB))
        ended = subprocess.run(
            [sys.executable, "-c", IN_SMALL_CGROUP, str(group)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        group.rmdir()
    assert ended.returncode == 0, ended.stderr  # -9 is the kernel's, -7 is SIGBUS
    held, short = map(int, ended.stdout.split())
    assert 4 <= held <= 20
    assert short == 1


def small_cgroup() -> tuple[Path, Path]:
    """A cgroup below this process's own, and the file that takes its memory's limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent, limit = Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
        elif controllers == "":
            parent, limit = Path("/sys/fs/cgroup" + path), "memory.max"
        else:
            continue
        group = parent / f"serve-grpc-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            return group, group / limit
        group.rmdir()
    pytest.skip("no cgroup with a memory limit can be made here")
