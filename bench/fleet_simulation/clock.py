"""An event loop with timers and no I/O: its clock jumps from one timer to the next.

A minimum of asyncio's: what the package's line, mailbox and timers ask of a loop. Not asyncio's own
with another clock, which takes several times as long for each timer; here are millions.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

from serve_grpc.caller import held, line, tally, trouble

__all__ = ["Clock"]


class _Timer:
    """What `call_later` returns."""

    __slots__ = ("is_cancelled",)

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """In the place of an `AbstractEventLoop`.

    Attributes:
        now_s: The time.
    """

    def __init__(self) -> None:
        self.now_s = 1.0
        self._order = count()
        self._timers: list[tuple[float, int, Any, Callable[..., object], tuple[Any, ...]]] = []
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    # ------------------------------------------------------------ of the simulation

    def at(self, delay_s: float, function: Callable[..., object], *args: Any) -> None:
        """As `call_later`, for what is never cancelled."""
        heapq.heappush(
            self._timers, (self.now_s + delay_s, next(self._order), None, function, args)
        )

    def run(self, until_s: float) -> None:
        """Let time pass."""
        timers, ready, pop = self._timers, self._ready, heapq.heappop
        while timers and timers[0][0] <= until_s:
            self.now_s, _, timer, function, args = pop(timers)
            if timer is None or not timer.is_cancelled:
                function(*args)
            while ready:
                function, args = ready.popleft()
                function(*args)
        self.now_s = until_s

    @contextmanager
    def running(self, rng: Any) -> Iterator[None]:
        """This is the running loop, and the package's clocks and chance are of the simulation."""
        clock = SimpleNamespace(monotonic=self.time)
        loop: Any = self
        asyncio._set_running_loop(loop)
        try:
            with (
                mock.patch.object(line, "time", clock),
                mock.patch.object(tally, "time", clock),
                mock.patch.object(trouble, "time", clock),
                mock.patch.object(trouble.logger, "disabled", True),
                mock.patch.object(held, "random", SimpleNamespace(Random=lambda: rng)),
            ):
                yield
        finally:
            asyncio._set_running_loop(None)

    # ------------------------------------------------------------ of a loop

    def time(self) -> float:
        return self.now_s

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, function: Callable[..., object], *args: Any, context: Any = None) -> None:
        self._ready.append((function, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, function: Callable[..., object], *args: Any) -> _Timer:
        timer = _Timer()
        order = next(self._order)
        heapq.heappush(self._timers, (self.now_s + delay_s, order, timer, function, args))
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]
