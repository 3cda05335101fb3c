"""Calls of 100 bytes beside calls of 100 MB, on one session; the limit is raised by the variable.

Prints JSON: {kind of large call: {"p50", "p99": of small ones in ms, "small", "large": how many}}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

import serve_grpc
from tests.faults.latencies import percentile
from tests.ray.apps.watched import WATCHED
from tests.ray.scripts import own_ray

LARGE_BYTES = 100_000_000
PAUSE_S = 0.003


async def _small_calls(handle: Any, seconds: float) -> list[float]:
    value, found = b"x" * 100, []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        started_s = time.perf_counter()
        await handle.echo.remote(value)
        found.append((time.perf_counter() - started_s) * 1000)
        await asyncio.sleep(PAUSE_S)
    return found


def measure(handle: Any, large: Any, seconds: float, at_once: int) -> dict[str, Any]:
    """Small calls from one thread, large ones from another."""
    is_over = threading.Event()
    done: list[int] = []

    async def one_after_another() -> None:
        while not is_over.is_set():
            await large()
            done.append(1)

    async def keep_busy() -> None:
        await asyncio.gather(*(one_after_another() for _ in range(at_once)))

    thread = threading.Thread(target=lambda: asyncio.run(keep_busy()), name="large calls")
    if large is not None:
        thread.start()
    try:
        small = asyncio.run(_small_calls(handle, seconds))
    finally:
        is_over.set()
        if large is not None:
            thread.join()
    return {
        "p50": percentile(small, 0.5),
        "p99": percentile(small, 0.99),
        "max": max(small),
        "small": len(small),
        "large": len(done),
    }


def main(seconds: float) -> None:
    with own_ray():
        handle = serve_grpc.run(WATCHED.bind(), name="large", route_prefix=None)
        handle = handle.options(_by_reference=False)
        data = b"x" * LARGE_BYTES
        kinds = {
            "none": None,
            "upload": lambda: handle.length.remote(data),
            "download": lambda: handle.blob.remote(LARGE_BYTES),
            "echo": lambda: handle.echo.remote(data),
        }
        handle.echo.remote(1).result(timeout_s=30)
        seen = {}
        for name, large in kinds.items():
            for at_once in (1, 2) if large else (1,):
                seen[f"{name} {at_once}"] = measure(handle, large, seconds, at_once)
        print(json.dumps(seen))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
