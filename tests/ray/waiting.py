"""Waiting for a condition, with a deadline, instead of sleeping for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["eventually", "eventually_async"]

T = TypeVar("T")

POLL_S, MAX_POLL_S = 0.02, 0.25
SHARE = 0.1
"""What has taken long may be seen this much later: a condition may cost more than it waits for."""


def _pauses(condition: Callable[[], T], timeout_s: float, found: list[T]) -> Iterator[float]:
    """How long to wait before each next look, until one finds something true."""
    begin_s = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - begin_s
        if waited_s > timeout_s:
            raise AssertionError(f"still {value!r} after {timeout_s} s: {condition}")
        yield min(MAX_POLL_S, max(POLL_S, SHARE * waited_s))
    found.append(value)


def eventually(condition: Callable[[], T], *, timeout_s: float = 15.0) -> T:
    """The first true value of `condition()`; blocks this thread."""
    found: list[T] = []
    for pause_s in _pauses(condition, timeout_s, found):
        time.sleep(pause_s)
    return found[0]


async def eventually_async(condition: Callable[[], T], *, timeout_s: float = 15.0) -> T:
    """As `eventually`, on an event loop."""
    found: list[T] = []
    for pause_s in _pauses(condition, timeout_s, found):
        await asyncio.sleep(pause_s)
    return found[0]
