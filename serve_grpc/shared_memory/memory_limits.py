"""How much memory this process may use, and how much of it is left: the machine's and its cgroup's.

Shared memory counts for the cgroup of whoever touches it first. Over the limit of a cgroup Linux
does not refuse it: it kills a process of that cgroup. So who takes much asks here before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Level", "available_bytes", "default_pool_bytes", "has_room_for", "limit_bytes"]

ROOT = Path("/")
MOST_POOL_BYTES = 1024**3
POOL_SHARE = 8
"""One part in eight of the limit, at most, is a pool's."""
KEPT_FREE_SHARE = 10
"""One part in ten of a limit is left alone: Ray kills workers from 95 % on."""


@dataclass(frozen=True)
class Level:
    """A limit that holds for this process: the machine's, or of one cgroup above it.

    Attributes:
        limit, available: In bytes; of what is used, what the kernel can drop counts as available.
    """

    limit: int
    available: int


def limit_bytes(root: Path = ROOT) -> int:
    """The most memory that this process may use, in bytes; 0 if the system does not say."""
    return min((level.limit for level in _levels(root)), default=0)


def available_bytes(root: Path = ROOT) -> int:
    """How much it may still take, in bytes; 0 if the system does not say."""
    return max(0, min((level.available for level in _levels(root)), default=0))


def default_pool_bytes(root: Path = ROOT) -> int:
    """How much shared memory a process may keep: an eighth of its limit, and at most 1 GiB."""
    return min(MOST_POOL_BYTES, limit_bytes(root) // POOL_SHARE)


def has_room_for(size: int, root: Path = ROOT) -> bool:
    """Whether `size` bytes more leave a tenth of every limit free. Reads a few small files."""
    levels = list(_levels(root))
    return bool(levels) and all(
        level.available - size >= level.limit // KEPT_FREE_SHARE for level in levels
    )


def _levels(root: Path) -> Iterator[Level]:
    machine = _machine(root)
    if machine is None:
        return
    yield machine
    for folder, names in _cgroups(root):
        limit = _number(folder / names.limit)
        usage = _number(folder / names.usage)
        if limit is not None and usage is not None and limit < machine.limit:
            droppable = _table(folder / "memory.stat").get(names.droppable, 0)
            yield Level(limit, limit - max(0, usage - droppable))


def _machine(root: Path) -> Level | None:
    table = _table(root / "proc/meminfo")
    if "MemTotal:" not in table:
        return None
    total = table["MemTotal:"] * 1024
    return Level(total, table.get("MemAvailable:", 0) * 1024)


@dataclass(frozen=True)
class _Names:
    """Of a cgroup's files, and of the line in `memory.stat` for file pages not in use."""

    limit: str
    usage: str
    droppable: str


V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = _Names("memory.max", "memory.current", "inactive_file")


def _cgroups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """Folders of the cgroups that this process is in, each with those above it."""
    mounts = _mounts(root)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            kind, names = "cgroup2", V2
        elif "memory" in controllers.split(","):
            kind, names = "memory", V1
        else:
            continue
        if kind not in mounts:
            continue
        shown, mount_point = mounts[kind]
        # A container may see only its own part of the tree, under the path of the whole one.
        inside = path.removeprefix(shown.rstrip("/")).strip("/")
        top = root / mount_point.lstrip("/")
        folder = top / inside
        while True:
            yield folder, names
            if folder == top:
                break
            folder = folder.parent


def _mounts(root: Path) -> dict[str, tuple[str, str]]:
    """What part of the tree is mounted where: of cgroup v2, and of v1's memory controller."""
    found = {}
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            found["cgroup2"] = (fields[3], fields[4])
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found["memory"] = (fields[3], fields[4])
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # not Linux, no such controller, or hidden in a sandbox: then it is no limit
        return []


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" is no limit


def _table(file: Path) -> dict[str, int]:
    rows = (line.split() for line in _lines(file))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
