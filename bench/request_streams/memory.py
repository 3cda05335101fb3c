"""The memory of a process of the benchmark, as it grows with what is asked of it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["resident_mib", "settled"]

MIB = 1024 * 1024
LOOK_S = 0.5


def resident_mib() -> float:
    """Of this process, shared memory too; without what earlier loads have left on its heap."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


async def settled(count: Callable[[], int]) -> int:
    """The count once it grows no more."""
    before = -1
    while (now := count()) != before or not now:
        before = now
        await asyncio.sleep(LOOK_S)
    return now
