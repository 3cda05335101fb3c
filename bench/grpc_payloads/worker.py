"""A process that calls: one JSON line in for a series of calls, one out with what they took."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

from bench.grpc_payloads.ends import Caller, echoing_replica

TICK_S = 0.01
"""The unit of CPU times in /proc."""


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


async def _series(caller: Caller, method: str, size: int, calls: int) -> list[float]:
    value, took = np.arange(size // 8, dtype=float), []
    for _ in range(calls):
        start = time.perf_counter()
        result = await caller.call(value, method)
        took.append(1e3 * (time.perf_counter() - start))
        assert result is not value
        assert len(result if method == "echo" else value) == size // 8
    return took


async def main() -> None:
    """Run the series that stdin asks for: [method, bytes, calls]."""
    async with echoing_replica() as (port, pid):
        caller = Caller(port)
        await caller.open()
        for line in iter(sys.stdin.readline, ""):
            method, size, calls = json.loads(line)
            before = time.process_time(), _cpu_s(pid)
            took = await _series(caller, method, size, calls)
            cpu = time.process_time() - before[0], _cpu_s(pid) - before[1]
            answer = {"ms": took, "cpu_ms": [1e3 * spent / calls for spent in cpu]}
            print(json.dumps(answer), flush=True)
        await caller.close()


if __name__ == "__main__":
    asyncio.run(main())
