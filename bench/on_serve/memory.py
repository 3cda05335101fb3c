"""Memory of a caller and a callee: looked at while the one calls the other, and a while later.

What processes share counts once, as it does for the machine: the sum is of proportional set sizes,
and files in memory count whole, mapped or not.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.results.run import Sample

__all__ = ["Memory", "memory_mib", "watched_calls"]

MIB = 1024 * 1024
LOOK_S = 0.25


@dataclass(frozen=True)
class Memory:
    """What so many calls did to it. Of all processes together, in MiB.

    Attributes:
        calls: How many were made, in `seconds`.
        before, most, after: Before the calls, the most while they were made, and after idle time.
        carrier: What carried the calls, see `Sample.carrier`.
    """

    calls: int
    seconds: float
    before: float
    most: float
    after: float
    carrier: str = ""

    def sample(self, contender: str, number: int) -> Sample:
        """As a sample of round `number`."""
        return Sample(
            contender,
            number,
            calls_per_s=self.calls / self.seconds,
            memory_before_mib=self.before,
            memory_most_mib=self.most,
            memory_left=self.after / self.before,
            calls=self.calls,
            carrier=self.carrier,
        )


async def watched_calls(
    call: Callable[[], Awaitable[None]], count: int, idle_s: float, pids: Sequence[int]
) -> Memory:
    """Make `count` calls one after another, and look at these processes meanwhile."""
    before = most = memory_mib(pids)
    begin = looked = time.monotonic()
    for _ in range(count):
        await call()
        if time.monotonic() - looked > LOOK_S:
            most = max(most, memory_mib(pids))
            looked = time.monotonic()
    seconds = time.monotonic() - begin
    await asyncio.sleep(idle_s)  # what is measured is what is given back by then
    return Memory(count, seconds, before, most, memory_mib(pids))


def memory_mib(pids: Sequence[int]) -> float:
    """What these processes have together, in MiB."""
    private = shared = 0
    files: dict[int, int] = {}
    for pid in pids:
        sizes = _proportional_sizes(pid)
        private += sizes["Pss"] - sizes["Pss_Shmem"]
        shared += sizes["Pss_Shmem"]
        files.update(_files_in_memory(pid))
    return (private + max(shared, sum(files.values()))) / MIB


def _proportional_sizes(pid: int) -> dict[str, int]:
    """Lines of the kernel's sums, in bytes."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, colon, rest = line.partition(":")
        if colon and rest.endswith(" kB"):
            found[name] = int(rest.split()[0]) * 1024
    return found


def _files_in_memory(pid: int) -> dict[int, int]:
    """Bytes of each that the process has open, by its inode."""
    found = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith("/memfd:"):
                status = os.stat(descriptor)
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue  # it was closed in the meantime
    return found
