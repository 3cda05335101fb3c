"""An event loop whose clock jumps to the next timer: hours of pauses pass in no time.

Everything that runs on it is real asyncio. A loop on which nothing will ever happen again, because
every task waits and no timer is set, raises `Hung`: that is what a lost wake-up looks like.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import pytest

__all__ = ["Hung", "VirtualLoop", "run"]

T = TypeVar("T")

BIRTH_S, LONGEST_LIFE_S = 1000.0, 300.0
"""By then everything has ended, or only timers go on that wake nobody."""


class Hung(AssertionError):
    """Every task waits, and nothing will wake one."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only while there is nothing to do, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = BIRTH_S
        self.ends_s = BIRTH_S + LONGEST_LIFE_S
        self._selector: Any
        select = self._selector.select

        def jump(timeout_s: float | None) -> list[Any]:
            if timeout_s is None or self._now_s > self.ends_s:
                raise Hung
            self._now_s += max(0.0, timeout_s)
            ready: list[Any] = select(0)
            return ready

        self._selector.select = jump

    def time(self) -> float:
        """Seconds since some moment, as `time.monotonic`."""
        return self._now_s

    def run_in_executor(self, _: Any, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """At once: a thread would take real time."""
        future: asyncio.Future[T] = self.create_future()
        future.set_result(function(*args))
        return future


def _modules_with(name: str, module: ModuleType) -> list[ModuleType]:
    ours = [m for n, m in tuple(sys.modules.items()) if n.startswith("serve_grpc.")]
    return [m for m in ours if getattr(m, name, None) is module]


def run(main: Callable[[random.Random], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run `main(rng)` on such a loop, with serve_grpc's clocks and chance taken from it."""
    import time

    rng = random.Random(seed)
    loop = VirtualLoop()
    clock = SimpleNamespace(monotonic=loop.time, perf_counter=loop.time, time=loop.time)
    chance = SimpleNamespace(Random=lambda: rng, uniform=rng.uniform)
    with pytest.MonkeyPatch.context() as patch:
        for module in _modules_with("time", time):
            patch.setattr(module, "time", clock)
        for module in _modules_with("random", random):
            if not module.__name__.startswith("serve_grpc.routing"):  # there it is only a type
                patch.setattr(module, "random", chance)
        try:
            return loop.run_until_complete(main(rng))
        finally:
            loop.ends_s = float("inf")
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.close()
