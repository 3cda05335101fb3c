"""`Journaled`, with answers of any size, endless streams, values that break, and a look inside."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import serve_grpc
from tests.ray.apps.journaled import Journaled
from tests.ray.apps.references import known

__all__ = ["WATCHED", "Breaks", "Watched", "resources"]


STREAMS = frozenset({"Inputs", "Inbox", "RequestStream", "LoopSource", "ThreadSource", "Relay"})
"""Classes of which a call with streams as arguments has some, at either end."""


def resources() -> dict[str, int]:
    """What this process holds: memory in bytes, and how many of everything that may leak."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    kinds = [type(thing).__name__ for thing in gc.get_objects()]
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": sum(kind in ("Task", "_asyncio.Task") for kind in kinds),
        "channels": kinds.count("Channel"),
        "sessions": kinds.count("CallerSession") + kinds.count("ReplicaSession"),
        "calls": kinds.count("Call") + kinds.count("Invocation"),
        "streams": sum(kind in STREAMS for kind in kinds),
        "refs": len(known()),
    }


class Breaks:
    """Raises `error` where it is unpickled."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


def _raise(error: Exception) -> None:
    raise error


class BreaksToo(Exception):
    """An exception that cannot be built again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two numbers")


class Watched(Journaled):
    """As `Journaled`."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self.blobs: dict[int, bytes] = {}
        self.made: dict[str, int] = defaultdict(int)

    async def blob(self, size: int, work_s: float = 0.0) -> bytes:
        """So many bytes, made once."""
        await asyncio.sleep(work_s)
        if size not in self.blobs:
            self.blobs[size] = b"x" * size
        return self.blobs[size]

    async def wait_with(self, _: Any, work_s: float) -> None:
        """Hold the argument for so long."""
        await asyncio.sleep(work_s)

    async def length(self, data: bytes) -> int:
        """Of what arrived."""
        return len(data)

    async def fast(self, key: str, size: int) -> AsyncIterator[bytes]:
        """Items without end, as fast as they are taken."""
        while True:
            self.made[key] += 1
            yield b"x" * size

    async def items_made(self, key: str) -> int:
        """Of the stream with this key; how many were taken, of one that is an argument."""
        return self.made[key]

    async def count(self, items: AsyncIterator[Any], most: int) -> int:
        """Of the items of a stream; so many of them at most."""
        taken = 0
        async for _ in items:
            taken += 1
            if taken == most:
                break
        return taken

    async def echo_items(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Each item, as it comes."""
        async for item in items:
            yield item

    async def take_slowly(self, key: str, items: AsyncIterator[Any], pause_s: float) -> None:
        """Each item of a stream, and then a pause; `items_made` tells how many."""
        async for _ in items:
            self.made[key] += 1
            await asyncio.sleep(pause_s)

    async def breaks(self, kind: str) -> Any:
        """A result or an error that the caller cannot read."""
        if kind == "raise":
            raise BreaksToo(1, 2)
        return Breaks(MemoryError("no room") if kind == "memory" else ValueError("no sense"))

    async def breaking_items(self, number: int, size: int) -> AsyncIterator[Any]:
        """Good items, then one of this size."""
        for i in range(number):
            yield i
        yield b"x" * size

    async def resources(self) -> dict[str, int]:
        """Of the replica's process."""
        return resources()


WATCHED = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=5,
    max_ongoing_requests=500,
)(Watched)
"""To be run with `.options(num_replicas=..., ...)`."""
