"""Callers that go on while a test does harm, each call with the outcome its caller saw.

`calling` keeps a number of calls in flight; `arriving` makes calls at a rate, whatever becomes of
those before.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.faults.calls import SETTLE_S, LoopThread, outcomes_of
from tests.faults.checker import Outcome
from tests.ray.waiting import eventually

__all__ = ["Load", "arriving", "calling"]

TURN_S = 0.01


@dataclass
class Load:
    """What came of the calls so far. `failed` are those that ended with an error."""

    outcomes: list[Outcome] = field(default_factory=list)
    is_over: bool = False

    @property
    def failed(self) -> list[Outcome]:
        """Those with an error, or none of both."""
        return [outcome for outcome in self.outcomes if outcome.kind != "ok"]

    def ok_between(self, start_s: float, end_s: float) -> int:
        """How many succeeded in this time."""
        ended = (o.ended_s for o in self.outcomes if o.kind == "ok")
        return sum(1 for ended_s in ended if ended_s is not None and start_s <= ended_s < end_s)

    def wait_for(self, more: int) -> None:
        """Return when so many more calls have ended, whatever their outcome."""
        enough = len(self.outcomes) + more
        eventually(lambda: len(self.outcomes) >= enough, timeout_s=60)


@contextmanager
def calling(
    callers: LoopThread, make: Callable[[str], Any], *, in_flight: int, prefix: str = "c"
) -> Iterator[Load]:
    """Keep so many calls in flight until the block ends; then all of them have an outcome.

    Args:
        callers: Where the callers live.
        make: Makes a call of this name.
        in_flight: How many callers, each of which makes one call after the other.
        prefix: Of the names.
    """
    load, names = Load(), (f"{prefix}{i}" for i in itertools.count())

    async def one_after_the_other() -> None:
        while not load.is_over:
            name = next(names)
            load.outcomes.extend(await outcomes_of([(name, partial(make, name))]))

    async def all_of_them() -> None:
        await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))

    running = callers.start(all_of_them())
    try:
        yield load
    finally:
        load.is_over = True
        running.result(SETTLE_S + 10)


@contextmanager
def arriving(
    callers: LoopThread, make: Callable[[str], Any], *, per_s: float, prefix: str = "a"
) -> Iterator[Load]:
    """Make calls at this rate until the block ends; then all of them have an outcome."""
    load = Load()

    async def arrive() -> None:
        tasks = []
        started_s = time.monotonic()
        while not load.is_over:
            due = int((time.monotonic() - started_s) * per_s)
            for i in range(len(tasks), due):
                name = f"{prefix}{i}"
                tasks.append(asyncio.ensure_future(outcomes_of([(name, partial(make, name))])))
                tasks[-1].add_done_callback(lambda task: load.outcomes.extend(task.result()))
            await asyncio.sleep(TURN_S)
        await asyncio.gather(*tasks)

    running = callers.start(arrive())
    try:
        yield load
    finally:
        load.is_over = True
        running.result(SETTLE_S + 10)
