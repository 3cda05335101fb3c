"""Many calls of `Journaled` at once, each with the outcome its caller saw."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.faults.checker import Outcome

__all__ = ["SETTLE_S", "LoopThread", "loop_thread", "outcome_of", "outcomes_of"]

T = TypeVar("T")

SETTLE_S = 60.0
"""A call without an outcome after this time counts as hung."""


async def outcome_of(name: str, response: Any) -> Outcome:
    """What becomes of a response; the items of a generator are kept, also if it fails."""
    items: list[Any] | None = [] if hasattr(response, "__anext__") else None
    value: Any = items
    try:
        if items is None:
            value = await response
        else:
            async for item in response:
                items.append(item)
    except (Exception, asyncio.CancelledError) as error:
        return Outcome(name, value, error, ended_s=time.monotonic())
    return Outcome(name, value, ended_s=time.monotonic())


async def outcomes_of(
    calls: Iterable[tuple[str, Callable[[], Any]]], *, settle_s: float = SETTLE_S
) -> list[Outcome]:
    """Make all calls, (name, what makes it), and wait for their outcomes."""

    async def one(name: str, make: Callable[[], Any]) -> Outcome:
        task = asyncio.ensure_future(outcome_of(name, make()))
        await asyncio.wait([task], timeout=settle_s)
        if task.done():
            return task.result()
        task.cancel()
        return Outcome(name)

    return await asyncio.gather(*(one(name, make) for name, make in calls))


class LoopThread:
    """An event loop in a thread of its own, for callers that go on while the test does harm."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="callers", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Of the thread."""
        return self._thread.ident

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it there; the future is its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        """End the loop; what still runs is left."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    """One that is stopped at the end."""
    thread = LoopThread()
    try:
        yield thread
    finally:
        thread.stop()
