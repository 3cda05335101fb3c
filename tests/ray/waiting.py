"""Waiting for a condition, with a deadline, instead of sleeping for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually", "eventually_async"]

T = TypeVar("T")

POLL_S = 0.02


def eventually(condition: Callable[[], T], *, timeout_s: float = 15.0) -> T:
    """The first true value of `condition()`; blocks this thread."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"still {value!r} after {timeout_s} s: {condition}")
        time.sleep(POLL_S)
    return value


async def eventually_async(condition: Callable[[], T], *, timeout_s: float = 15.0) -> T:
    """As `eventually`, on an event loop."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"still {value!r} after {timeout_s} s: {condition}")
        await asyncio.sleep(POLL_S)
    return value
