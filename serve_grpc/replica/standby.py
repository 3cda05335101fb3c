"""Requests that found the replica full, and wait a moment for a slot.

Between the reply that frees a slot and its caller's next request lies a round trip. A replica whose
requests take less than that would be idle most of the time, so it lets its callers send a few more
than it runs: as many as its slots get through in `AHEAD_MS`, none where requests take long. They
run when a request that ends passes its slot on to them, or a slot becomes free, and are turned away
if neither happens within `STAND_BY_S`.

Two parties share the row: the replica's main loop adds requests and removes those that are late,
the user's loop takes them. In between is only a deque, whose methods are atomic.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["STAND_BY_S", "SlotRelay", "StandBy"]

T = TypeVar("T")

MAX_STANDBY = 64
AHEAD_MS = 2.0
"""A round trip between two busy processes, and a little more."""
STAND_BY_S = 0.01
WEIGHT = 1 / 32
"""Of one request in the mean duration."""
UNKNOWN_MS = 10_000.0
"""A new replica's mean, so that about three hundred short requests have to be seen first."""


class StandBy(Generic[T]):
    """The row of those that wait; first come, first served. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._row: deque[tuple[float, T]] = deque()
        self._mean_ms = UNKNOWN_MS

    def __len__(self) -> int:
        return len(self._row)

    def __repr__(self) -> str:
        return f"<StandBy {len(self._row)}, requests take {self._mean_ms:.2f} ms>"

    def size(self, slots: int) -> int:
        """How many may stand by, where `slots` run at once."""
        return int(min(MAX_STANDBY, slots * AHEAD_MS / self._mean_ms))

    def on_duration(self, duration_ms: float) -> None:
        """A request ran for so long."""
        self._mean_ms += (duration_ms - self._mean_ms) * WEIGHT

    def add(self, request: T, now_s: float) -> None:
        """Let one wait."""
        self._row.append((now_s, request))

    def take(self) -> T | None:
        """Who is next; None if nobody waits any more. From any thread."""
        try:
            return self._row.popleft()[1]
        except IndexError:
            return None

    def take_late(self, now_s: float) -> list[T]:
        """Those for whom no slot came in time; if there are any, nobody else waits for a while."""
        late = []
        # The user's loop may take the first one meanwhile; the next one is hardly younger.
        while self._row and now_s - self._row[0][0] >= STAND_BY_S:
            if (request := self.take()) is not None:
                late.append(request)
        if late:
            self._mean_ms = UNKNOWN_MS
        return late


class SlotRelay(Generic[T]):
    """Passes the slots of requests that end on to those that stand by. Lives on the user's loop.

    Within one turn of the loop a slot may serve many requests that never wait. Invariant: while a
    slot is spare, a task that uses it is on its way; when the row is empty it is given back.

    Args:
        standby: The row.
        run: Runs a request that holds a slot, as the task that it is called in.
        give_back: Takes so many slots that nobody here needs.
    """

    def __init__(
        self,
        standby: StandBy[T],
        loop: asyncio.AbstractEventLoop,
        run: Callable[[T], Awaitable[None]],
        give_back: Callable[[int], None],
    ) -> None:
        self._standby = standby
        self._loop = loop
        self._run = run
        self._give_back = give_back
        self._spare = 0
        self._expected = 0  # tasks that are about to look for a spare slot and a request

    def __repr__(self) -> str:
        return f"<SlotRelay {self._spare} spare, {self._expected} expected>"

    def expect(self, count: int) -> None:
        """So many requests were added to the row; `start_one` will be called for each."""
        self._expected += count

    def start_one(self) -> None:
        """Start a task for one that stands by; if there is no slot by then, it goes on waiting."""
        # Not in the context of the request that just ended: its variables are not for the next.
        contextvars.Context().run(self._loop.create_task, self._run_next())

    def add(self) -> None:
        """Take a slot for somebody who stands by."""
        self._spare += 1
        self._use()

    def _use(self) -> None:
        waiting = len(self._standby)
        if waiting:
            while self._expected < min(self._spare, waiting):
                self._expected += 1
                self.start_one()
        elif self._spare:
            spare, self._spare = self._spare, 0
            self._give_back(spare)

    async def _run_next(self) -> None:
        self._expected -= 1
        request = self._standby.take() if self._spare else None
        if request is not None:
            self._spare -= 1
        self._use()
        if request is not None:
            await self._run(request)
