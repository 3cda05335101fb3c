"""Latencies of small calls with a disturbance and without it, in turns.

A machine that is noisy is so in both, so the ratio says what the disturbance does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

__all__ = ["latencies_ms", "percentile", "side_by_side"]


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them are at most."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def latencies_ms(
    call: Callable[[], Awaitable[object]], *, seconds: float, at_once: int
) -> list[float]:
    """Of calls made one after another by so many callers."""
    until_s = time.monotonic() + seconds
    found: list[float] = []

    async def go_on() -> None:
        while time.monotonic() < until_s:
            started_s = time.perf_counter()
            await call()
            found.append((time.perf_counter() - started_s) * 1000)

    await asyncio.gather(*(go_on() for _ in range(at_once)))
    return found


async def side_by_side(
    call: Callable[[], Awaitable[object]],
    disturbance: Callable[[], AbstractAsyncContextManager[object]],
    *,
    rounds: int,
    seconds: float,
    at_once: int = 4,
) -> tuple[list[float], list[float]]:
    """Latencies (undisturbed, disturbed), from turns of `seconds` each."""
    alone: list[float] = []
    disturbed: list[float] = []
    await latencies_ms(call, seconds=0.3, at_once=at_once)
    for _ in range(rounds):
        alone += await latencies_ms(call, seconds=seconds, at_once=at_once)
        async with disturbance():
            disturbed += await latencies_ms(call, seconds=seconds, at_once=at_once)
    return alone, disturbed
