"""How much memory there is, read from a tree of files as Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_grpc.shared_memory.memory_limits import (
    available_bytes,
    default_pool_bytes,
    has_room_for,
    limit_bytes,
)

GIB = 1024**3
MEMINFO = f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 5 kB\nMemAvailable: {8 * GIB // 1024} kB\n"
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "31 24 0:30 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = (
    "29 23 0:25 / /sys rw - sysfs sysfs rw\n32 24 0:31 / /sys/x rw - cgroup cgroup rw,cpu\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a system with 16 GiB, 8 of them free, and no cgroups."""
    put(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def put(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def v2(root: Path, path: str, shown: str = "/") -> Path:
    """The process is in cgroup `path` of version 2; the folder of the topmost that is shown."""
    put(root / "proc/self/cgroup", f"0::{path}")
    put(root / "proc/self/mountinfo", OTHER_MOUNTS + V2_MOUNT.format(root=shown))
    return root / "sys/fs/cgroup"


def v1(root: Path, path: str, shown: str = "/") -> Path:
    put(root / "proc/self/cgroup", f"3:cpuset:/\n4:memory:{path}\n0::/")
    put(root / "proc/self/mountinfo", OTHER_MOUNTS + V1_MOUNT.format(root=shown))
    return root / "sys/fs/cgroup/memory"


def limit_v2(group: Path, limit: object, used: int, inactive: int = 0) -> None:
    put(group / "memory.max", limit)
    put(group / "memory.current", used)
    put(group / "memory.stat", f"anon 5\ninactive_file {inactive}\nactive_file 7")


def limit_v1(group: Path, limit: int, used: int, inactive: int = 0) -> None:
    put(group / "memory.limit_in_bytes", limit)
    put(group / "memory.usage_in_bytes", used)
    put(group / "memory.stat", f"inactive_file 1\ntotal_inactive_file {inactive}")


def test_without_cgroups_it_is_the_machines(root: Path) -> None:
    assert (limit_bytes(root), available_bytes(root)) == (16 * GIB, 8 * GIB)


def test_the_limit_of_the_own_cgroup_counts(root: Path) -> None:
    top = v2(root, "/pods/mine")
    limit_v2(top / "pods/mine", 2 * GIB, GIB, inactive=GIB // 4)
    assert (limit_bytes(root), available_bytes(root)) == (2 * GIB, GIB + GIB // 4)


def test_a_tighter_limit_above_counts(root: Path) -> None:
    top = v2(root, "/pods/mine")
    limit_v2(top / "pods", GIB, GIB // 2)
    limit_v2(top / "pods/mine", "max", 5)
    assert (limit_bytes(root), available_bytes(root)) == (GIB, GIB // 2)


def test_a_container_sees_its_own_part_of_the_tree(root: Path) -> None:
    """Its own cgroup namespace shows "/"; without one, the mount says what part is shown."""
    limit_v2(v2(root, "/"), GIB, 0)
    assert limit_bytes(root) == GIB
    v2(root, "/docker/abc", shown="/docker/abc")
    assert limit_bytes(root) == GIB


def test_version_one_is_read_as_well(root: Path) -> None:
    limit_v1(v1(root, "/docker/abc", shown="/docker/abc"), 2 * GIB, GIB, inactive=GIB // 2)
    assert (limit_bytes(root), available_bytes(root)) == (2 * GIB, GIB + GIB // 2)


def test_no_limit_in_version_one_is_a_huge_number(root: Path) -> None:
    limit_v1(v1(root, "/a"), 9223372036854771712, GIB)
    limit_v1(v1(root, "/a") / "a", 9223372036854771712, GIB)
    assert (limit_bytes(root), available_bytes(root)) == (16 * GIB, 8 * GIB)


def test_a_full_cgroup_has_nothing_left(root: Path) -> None:
    limit_v2(v2(root, "/"), GIB, GIB + 4096)
    assert available_bytes(root) == 0
    assert not has_room_for(1, root)


@pytest.mark.parametrize(("limit", "pool"), [(64 * GIB, GIB), (4 * GIB, GIB // 2), (GIB, GIB // 8)])
def test_a_pool_is_an_eighth_and_a_gibibyte_at_most(root: Path, limit: int, pool: int) -> None:
    put(root / "proc/meminfo", MEMINFO.replace(str(16 * GIB // 1024), str(limit // 1024)))
    assert default_pool_bytes(root) == pool


def test_a_tenth_of_each_limit_is_left_alone(root: Path) -> None:
    group = v2(root, "/")
    limit_v2(group, 10 * GIB, 5 * GIB)
    assert has_room_for(4 * GIB, root)
    assert not has_room_for(4 * GIB + 1, root)
    limit_v2(group, 15 * GIB, 0)  # now the machine's 8 of 16 GiB are what is short
    assert has_room_for(6 * GIB, root)
    assert not has_room_for(7 * GIB, root)


def test_where_the_system_says_nothing_there_is_no_room(tmp_path: Path) -> None:
    assert (limit_bytes(tmp_path), available_bytes(tmp_path)) == (0, 0)
    assert default_pool_bytes(tmp_path) == 0
    assert not has_room_for(1, tmp_path)


def test_it_reads_this_machine() -> None:
    assert 0 < available_bytes() <= limit_bytes()
    assert 0 < default_pool_bytes() <= GIB
