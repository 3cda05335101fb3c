"""The standby queue: requests that found the replica full, and wait a moment for a slot.

Between the reply that frees a slot and its caller's next request lies a round trip. A replica whose
requests take less than that would be idle most of the time, so it lets its callers send a few more
than it runs: as many as its slots get through in `AHEAD_MS`, none where requests take long. They
run when a request that ends passes its slot on to them, or a slot becomes free. They are turned
away if neither happens within `STAND_BY_S`.

Two loops share the queue: the replica's main loop adds requests and removes those that are late,
the user's loop takes them. Between them is only a deque, whose methods are atomic.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["STAND_BY_S", "SlotRelay", "StandbyQueue"]

T = TypeVar("T")

MAX_STANDBY = 64
AHEAD_MS = 2.0
"""A round trip between two busy processes, and a little more."""
STAND_BY_S = 0.01
"""With 4 ms, processes that pause on two busy cores caused a hundred rejections a second (0015)."""
WEIGHT = 1 / 32
"""What one request counts for in the mean duration: the last hundred or so matter."""
UNKNOWN_MS = 10_000.0
"""A new replica's mean, so that about three hundred short requests have to be seen first."""


class StandbyQueue(Generic[T]):
    """Those that stand by; first come, first served. Times are of one monotonic clock, in seconds.

    It also keeps the mean duration of requests, which says how many may stand by.

    Attributes:
        queue: When each began to stand by, and what. To be looked at where each request comes by:
            `len` of this object takes a call.
    """

    def __init__(self) -> None:
        self.queue: deque[tuple[float, T]] = deque()
        self._mean_ms = UNKNOWN_MS

    def __len__(self) -> int:
        return len(self.queue)

    def __repr__(self) -> str:
        return f"<StandbyQueue {len(self.queue)}, requests take {self._mean_ms:.2f} ms>"

    def size(self, slots: int) -> int:
        """How many may stand by, where `slots` run at once."""
        return int(min(MAX_STANDBY, slots * AHEAD_MS / self._mean_ms))

    def on_duration(self, duration_ms: float) -> None:
        """Note how long a request ran, in milliseconds."""
        self._mean_ms += (duration_ms - self._mean_ms) * WEIGHT

    def add(self, request: T, now_s: float) -> None:
        """Let one more stand by, from `now_s` on."""
        self.queue.append((now_s, request))

    def take(self) -> T | None:
        """Who is next; None if nobody stands by any more. From any thread."""
        # Not `if queue: popleft()`: the other loop may take the last one in between.
        try:
            return self.queue.popleft()[1]
        except IndexError:
            return None

    def take_late(self, now_s: float) -> list[T]:
        """Those for whom no slot came in time.

        If there are any, requests take longer than was thought, or a slot was taken away: nobody
        else stands by until a few hundred requests have been short again.
        """
        late = []
        # The user's loop may take the first one meanwhile; the next one is hardly younger.
        while self.queue and now_s - self.queue[0][0] >= STAND_BY_S:
            if (request := self.take()) is not None:
                late.append(request)
        if late:
            self._mean_ms = UNKNOWN_MS
        return late


class SlotRelay(Generic[T]):
    """Passes the slots of requests that end on to those that stand by. Lives on the user's loop.

    Within one turn of the loop a slot may serve many requests whose code never waits. Invariant:
    while a slot is spare, a task that uses it is on its way; when nobody stands by, it is given
    back.

    Args:
        standby: The queue.
        run: Runs a request that holds a slot, as the task that it is called in.
        give_back: Takes so many slots that nobody here needs.
    """

    def __init__(
        self,
        standby: StandbyQueue[T],
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
        """Note that so many requests were added to the queue: `start_one` follows for each."""
        self._expected += count

    def start_one(self) -> None:
        """Start a task for one that stands by; if there is no slot by then, it goes on waiting."""
        # Not in the context of the request that just ended: asyncio copies the current context into
        # a new task, and neither Serve's request context nor the user's variables are for the next.
        contextvars.Context().run(self._loop.create_task, self._run_next())

    def add(self) -> None:
        """Take a slot for somebody who stands by."""
        self._spare += 1
        self._use()

    def _use(self) -> None:
        waiting = len(self._standby)
        if waiting:
            # A task for each slot that somebody can use, those on their way included.
            while self._expected < min(self._spare, waiting):
                self._expected += 1
                self.start_one()
        elif self._spare:
            spare, self._spare = self._spare, 0
            self._give_back(spare)

    async def _run_next(self) -> None:
        self._expected -= 1
        # There may be a slot and nobody to use it (turned away meanwhile), or somebody and no slot
        # (an earlier task used it): then this task was one too many, and ends.
        request = self._standby.take() if self._spare else None
        if request is not None:
            self._spare -= 1
        # Before the request runs: another spare slot must not wait for its code.
        self._use()
        if request is not None:
            await self._run(request)
