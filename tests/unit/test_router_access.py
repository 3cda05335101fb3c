"""What Serve's own metrics of a handle are told, with Serve's real metrics manager."""

from __future__ import annotations

import asyncio

from bench.stand_ins import cancel_tasks, new_router, running


class Gauge:
    """Keeps what it is set to."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def set(self, value: int) -> None:
        self.values.append(value)


def test_running_calls_are_told_at_once_where_serve_caches_nothing() -> None:
    """RAY_SERVE_METRICS_EXPORT_INTERVAL_MS=0."""

    async def main() -> list[int]:
        access, manager = new_router()
        access.subscribe(lambda _: None)
        infos = running(2, max_ongoing_requests=5)
        manager._update_running_replicas(infos)
        manager._cached_metrics_enabled = False
        gauge = manager.num_running_requests_gauge = Gauge()
        for info in (infos[0], infos[1], infos[1]):
            access.on_sent(info.replica_id.unique_id)
        access._flush()
        access.on_finished(infos[1].replica_id.unique_id)
        access._flush()
        assert (access.calls, access.sent) == (0, 3)
        await cancel_tasks()
        return gauge.values

    assert asyncio.run(main()) == [3, 2]
