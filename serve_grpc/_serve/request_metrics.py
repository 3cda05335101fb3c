"""What Serve counts of a replica's requests, told in bulk.

Serve keeps what `record_request_metrics` is told, and hands it to Ray's metrics every 100 ms. For
each request that is a dozen calls, and another dozen for its latency: more than a small request
costs elsewhere. Requests are kept as tuples and told together: the same numbers in the same places,
`TELL_AFTER_S` later at the most. On the replica's main loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

__all__ = ["RequestMetrics"]

TELL_AFTER_S = 0.05
"""Well below the shortest interval at which Serve looks at these numbers (0.1 s)."""


class RequestMetrics:
    """Serve's `ReplicaMetricsManager`, by what it counts of requests that ended."""

    def __init__(self, manager: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._manager = manager
        self._loop = loop
        self._ended: list[tuple[str, float, str | None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, route: str, latency_ms: float, exception_type: str | None) -> None:
        """Count a request that ended; `exception_type` if its code raised."""
        self._ended.append((route, latency_ms, exception_type))
        if self._timer is None:
            if self._manager._cached_metrics_enabled:
                self._timer = self._loop.call_later(TELL_AFTER_S, self._on_timer)
            else:
                self.tell()  # RAY_SERVE_METRICS_EXPORT_INTERVAL_MS=0: nothing may be late

    def _on_timer(self) -> None:
        self._timer = None
        self.tell()

    def close(self) -> None:
        """Tell what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.tell()

    def tell(self) -> None:
        """Tell Serve of those that ended since the last time."""
        ended, self._ended = self._ended, []
        latencies: dict[str, list[float]] = {}
        for route, latency_ms, _ in ended:
            latencies.setdefault(route, []).append(latency_ms)
        outcomes = Counter((route, exception_type) for route, _, exception_type in ended)
        # The rest is what `record_request_metrics` does with each request (Ray 2.60), and
        # `_report_cached_metrics` with its latency.
        manager = self._manager
        for route, of_route in latencies.items():
            manager._user_code_time_accumulator.add(sum(of_route))
            manager._max_processing_latency_trackers[route].add(max(of_route))
            _observe_all(manager._processing_latency_tracker, of_route, {"route": route})
        for (route, exception_type), count in outcomes.items():
            if exception_type is None:
                manager._request_counter.inc(count, tags={"route": route})
            else:
                tags = {"route": route, "exception_type": exception_type or "Unknown"}
                manager._error_counter.inc(count, tags=tags)


def _observe_all(histogram: Any, values: list[float], tags: dict[str, str]) -> None:
    # The first one by its method, which checks the tags; then they need not be checked again.
    histogram.observe(values[0], tags=tags)
    record, final_tags = histogram._metric.record, histogram._get_final_tags(tags)
    for value in values[1:]:
        record(value, tags=final_tags)
