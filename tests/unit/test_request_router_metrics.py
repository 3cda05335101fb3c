"""What Serve's request router would have told its metrics of the calls that we carry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serve_grpc._serve import router_metrics
from serve_grpc._serve.router_metrics import (
    MAX_OBSERVED,
    OBSERVED_PER_TURN,
    SAMPLE,
    RequestRouterMetrics,
)
from tests.fakes.serve_objects import new_request_router, new_serve_router
from tests.ray.waiting import eventually_async


def run(check: Callable[[RequestRouterMetrics, Any], Any], serves: Any) -> None:
    """Await `check(metrics, router)` on a loop, with Serve's request router `serves`."""

    async def main() -> None:
        router = new_serve_router(asyncio.get_running_loop(), serves)
        await check(RequestRouterMetrics(router), router)

    asyncio.run(main())


def test_a_few_waits_are_observed_at_once_zeros_too() -> None:
    serves = new_request_router()

    async def check(metrics: RequestRouterMetrics, router: Any) -> None:
        metrics.on_waits([3.0, 5.0], at_once=2)
        assert serves.queue_wait_time_ms_histogram.values == [3.0, 5.0, 0.0, 0.0]
        metrics.on_resolved([7.0], without=1)
        assert router._objref_resolution_latency_ms.values == [7.0, 0.0]

    run(check, serves)


def test_many_values_take_several_turns_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_metrics, "TURN_S", 0.0)
    serves = new_request_router()
    values = [float(number) for number in range(3 * OBSERVED_PER_TURN)]

    async def check(metrics: RequestRouterMetrics, _: Any) -> None:
        histogram = serves.queue_wait_time_ms_histogram
        metrics.on_waits(values, at_once=0)
        assert histogram.values == values[:OBSERVED_PER_TURN]
        metrics.on_waits([-1.0], at_once=0)  # comes after those that wait
        await eventually_async(lambda: len(histogram.values) == len(values) + 1)
        assert histogram.values == [*values, -1.0]

    run(check, serves)


def test_of_too_many_an_even_sample_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_metrics, "OBSERVED_PER_TURN", 10 * MAX_OBSERVED)
    serves = new_request_router()

    async def check(metrics: RequestRouterMetrics, _: Any) -> None:
        metrics.on_waits([float(n) for n in range(2 * MAX_OBSERVED)], at_once=MAX_OBSERVED)
        values = serves.queue_wait_time_ms_histogram.values
        step = 3 * MAX_OBSERVED // SAMPLE
        assert len(values) <= SAMPLE
        assert values[:3] == [0.0, step, 2 * step]
        assert values.count(0.0) == 1 + MAX_OBSERVED // step

    run(check, serves)


def test_without_a_request_router_nothing_is_told() -> None:
    async def check(metrics: RequestRouterMetrics, router: Any) -> None:
        metrics.on_waits([1.0], at_once=1)
        metrics.set_tasks(1, 1)
        metrics.set_loads({"a": 1})
        assert router._objref_resolution_latency_ms.values == []
        assert not metrics._to_observe
        # What could not be told then is told once it can be.
        router._request_router = serves = new_request_router()
        metrics.set_tasks(1, 1)
        metrics.set_loads({"a": 1})
        assert serves.num_routing_tasks_gauge.values == [1]
        assert serves.router_queue_len_gauge.values == [1]

    run(check, None)


def test_routings_are_added_to_serves_own_and_told_when_they_change() -> None:
    serves = new_request_router()
    serves.curr_num_routing_tasks, serves.num_routing_tasks_in_backoff = 10, 5

    async def check(metrics: RequestRouterMetrics, _: Any) -> None:
        for tasks in [(2, 1), (2, 1), (0, 0)]:
            metrics.set_tasks(*tasks)
        assert serves.num_routing_tasks_gauge.values == [12, 10]
        assert serves.num_routing_tasks_in_backoff_gauge.values == [6, 5]

    run(check, serves)


def test_loads_are_told_when_they_change_and_zero_when_a_replica_is_gone() -> None:
    serves = new_request_router()

    async def check(metrics: RequestRouterMetrics, _: Any) -> None:
        gauge = serves.router_queue_len_gauge
        metrics.set_loads({"a": 1, "b": 2})
        assert sorted(value for value in gauge.values) == [1, 2]
        gauge.told.clear()
        metrics.set_loads({"a": 1, "b": 3})
        metrics.set_loads({"a": 1})
        metrics.set_loads({"a": 1})
        assert gauge.told == [(3, {"replica_id": "b"}), (0, {"replica_id": "b"})]

    run(check, serves)
