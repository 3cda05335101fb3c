"""The metrics that Serve's request router keeps, fed with our calls.

Serve observes each request as it goes. Ray takes one value of a histogram at a time, for more than
a small call costs elsewhere, so values are observed later, a few in each turn of the loop, and of
more than `MAX_OBSERVED` in a second only an even sample. All of it on the router's loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

__all__ = ["RequestRouterMetrics"]

MAX_OBSERVED = 1_000
"""Values of one histogram in one report that are all observed."""
SAMPLE = 100
"""How many are observed of more than those; quantiles stay true, counts do not."""
OBSERVED_PER_TURN = 25
"""At 3 to 10 µs each (docs/decisions/0006): the loop carries sessions, and is not held up."""
TURN_S = 0.005


class RequestRouterMetrics:
    """Serve's `AsyncioRouter` and its request router, by the metrics they hold."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self._loop: asyncio.AbstractEventLoop = router._event_loop
        self._to_observe: deque[tuple[Any, float]] = deque()
        self._tasks = (0, 0)
        self._loads: dict[str, int] = {}

    def on_waits(self, waits_ms: list[float], at_once: int) -> None:
        """How long calls waited for a replica; `at_once` of them not at all."""
        # `AsyncioRouter.request_router` makes it when the deployment's configuration has come.
        if self._router._request_router is not None:
            histogram = self._router._request_router.queue_wait_time_ms_histogram
            self._observe(histogram, waits_ms, at_once)

    def on_resolved(self, resolutions_ms: list[float], without: int) -> None:
        """How long calls waited for their arguments; `without` of them had nothing to wait for."""
        self._observe(self._router._objref_resolution_latency_ms, resolutions_ms, without)

    def _observe(self, histogram: Any, values: list[float], zeros: int) -> None:
        # Each `step`-th value, rounded up, and as large a share of the zeros: quantiles stay true.
        count = len(values) + zeros
        step = 1 if count <= MAX_OBSERVED else -(-count // SAMPLE)
        was_idle = not self._to_observe
        self._to_observe.extend((histogram, value) for value in values[::step])
        self._to_observe.extend((histogram, 0.0) for _ in range(zeros // step))
        if was_idle:
            self._observe_some()

    def _observe_some(self) -> None:
        for _ in range(min(OBSERVED_PER_TURN, len(self._to_observe))):
            histogram, value = self._to_observe.popleft()
            histogram.observe(value)
        if self._to_observe:
            self._loop.call_later(TURN_S, self._observe_some)

    def set_tasks(self, routing: int, in_backoff: int) -> None:
        """How many routings of ours are under way; Serve's own, by reference, come on top."""
        serves = self._router._request_router
        if serves is None or self._tasks == (routing, in_backoff):
            return
        self._tasks = routing, in_backoff
        # Serve sets the same gauges whenever its own number changes, and leaves ours out then.
        serves.num_routing_tasks_gauge.set(serves.curr_num_routing_tasks + routing)
        waiting = serves.num_routing_tasks_in_backoff + in_backoff
        serves.num_routing_tasks_in_backoff_gauge.set(waiting)

    def set_loads(self, loads: dict[str, int]) -> None:
        """What this process believes of the load of each replica, by its id."""
        serves = self._router._request_router
        if serves is None:
            return
        for replica_id in loads.keys() | self._loads.keys():
            load = loads.get(replica_id, 0)
            if load != self._loads.get(replica_id, 0):
                serves.router_queue_len_gauge.set(load, tags={"replica_id": replica_id})
        self._loads = loads
