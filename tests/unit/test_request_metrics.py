"""What Serve counts of a replica's requests: the same numbers in bulk as one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._serve import request_metrics
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc._serve.request_metrics import RequestMetrics
from tests.ray.waiting import eventually_async

ENDED: tuple[tuple[str, float, str | None], ...] = (
    ("/a", 1.0, None),
    ("/a", 30.0, "ValueError"),
    ("/b", 2.0, None),
    ("/a", 4.0, None),
    ("/b", 3.0, "ValueError"),
    ("/a", 5.0, "KeyError"),
    ("/a", 6.0, ""),
)

Tags = tuple[tuple[str, str], ...]


class Told:
    """In the place of a metric of Ray's: what it was told."""

    def __init__(self) -> None:
        self.samples: list[tuple[Tags, float]] = []

    def record(self, value: float, tags: dict[str, str]) -> None:
        self.samples.append((tuple(sorted(tags.items())), value))

    inc = record

    def total(self) -> dict[Tags, float]:
        totals: dict[Tags, float] = {}
        for tags, value in self.samples:
            totals[tags] = totals.get(tags, 0) + value
        return totals


def new_replica() -> ReplicaAdapter:
    async def unused() -> None:
        raise AssertionError("no request is run")

    adapter = new_replica_adapter(unused, max_ongoing_requests=1)
    for name in ("_processing_latency_tracker", "_request_counter", "_error_counter"):
        getattr(adapter._metrics, name)._metric = Told()
    return adapter


class Managers:
    """Two of Serve's: one is told in bulk, the other one by one."""

    def __init__(self) -> None:
        self.bulk: Any = new_replica()._metrics
        self.single: Any = new_replica()._metrics
        self.metrics = RequestMetrics(self.bulk, asyncio.get_running_loop())

    def end_all(self) -> None:
        for route, latency_ms, exception_type in ENDED:
            self.metrics.add(route, latency_ms, exception_type)
            self.single.record_request_metrics(
                route=route,
                latency_ms=latency_ms,
                is_error=exception_type is not None,
                exception_type=exception_type,
            )

    @property
    def told(self) -> list[Any]:
        return sorted(self.bulk._processing_latency_tracker._metric.samples)

    def assert_same(self) -> None:
        assert len(self.told) == len(ENDED)
        assert self.told == sorted(self.single._processing_latency_tracker._metric.samples)
        for name in ("_request_counter", "_error_counter"):
            bulk, single = (getattr(m, name)._metric.total() for m in (self.bulk, self.single))
            assert bulk == single != {}
        both = self.bulk, self.single
        windows = [manager._user_code_time_accumulator.get_total() for manager in both]
        assert windows[0] == pytest.approx(windows[1])
        for route in ("/a", "/b"):
            bulk, single = (m._max_processing_latency_trackers[route].get_max() for m in both)
            assert bulk == single > 0


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        try:
            await check()
        finally:
            await cancel_tasks()

    asyncio.run(main())


def test_in_bulk_the_numbers_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_metrics, "TELL_AFTER_S", 0.01)

    async def check() -> None:
        managers = Managers()
        managers.end_all()
        assert managers.told == []  # a moment later
        managers.single._report_cached_metrics()
        await eventually_async(lambda: bool(managers.told))
        managers.assert_same()

    run(check)


def test_who_wants_nothing_late_gets_nothing_late() -> None:
    async def check() -> None:
        managers = Managers()
        managers.bulk._cached_metrics_enabled = False
        managers.single._cached_metrics_enabled = False
        managers.end_all()
        managers.assert_same()

    run(check)


def test_what_is_left_is_told_at_the_end_and_once() -> None:
    async def check() -> None:
        managers = Managers()
        managers.end_all()
        managers.single._report_cached_metrics()
        managers.metrics.close()
        managers.metrics.close()
        managers.assert_same()

    run(check)


def test_a_replica_that_shuts_down_tells_what_is_left() -> None:
    async def check() -> None:
        adapter = new_replica()

        async def nothing() -> None:
            """Serve's own shutdown."""

        adapter._replica.perform_graceful_shutdown = nothing
        adapter.around_shutdown(nothing, nothing)
        adapter.record(
            method_name="echo",
            route="/a",
            request_id="id",
            client="",
            latency_ms=1.0,
            status="OK",
            exception_type=None,
        )
        await adapter._replica.perform_graceful_shutdown()
        assert adapter._metrics._request_counter._metric.total() == {(("route", "/a"),): 1}

    run(check)
