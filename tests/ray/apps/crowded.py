"""A deployment that more callers want than it runs at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Crowd", "Crowded"]


class Crowded:
    """Short handlers of several kinds, and how many of them ran at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.most = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    async def at_once(self, value: int) -> int:
        with self.counted():
            return value

    async def in_a_turn(self, value: int) -> int:
        with self.counted():
            await asyncio.sleep(0)
            return value

    async def in_a_while(self, value: int) -> int:
        with self.counted():
            await asyncio.sleep(0.001 if value % 7 else 0.02)
            return value

    def in_a_thread(self, value: int) -> int:
        with self.counted():
            return value

    async def for_long(self, value: int) -> int:
        with self.counted():
            await asyncio.sleep(1)
            return value

    async def most_running(self) -> int:
        return self.most


class Crowd:
    """Calls a `Crowded` with many calls in flight, in a process of its own."""

    def __init__(self, crowded: Any) -> None:
        self.crowded = crowded.options(_by_reference=False)

    async def __call__(self, method: str, calls: int, in_flight: int) -> list[int]:
        """The results of calls 0, 1, 2, ..., in the order in which they came."""
        numbers, results = iter(range(calls)), []

        async def worker() -> None:
            for number in numbers:
                results.append(await getattr(self.crowded, method).remote(number))

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return results
