"""What a router counts: outcomes from any thread, and what Serve's histograms are told."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_grpc._serve.router_metrics import MAX_OBSERVED, RequestRouterMetrics
from serve_grpc.caller.tally import OUTCOMES, Tally
from serve_grpc.errors import DeadlineExceededError, ReplicaDiedError, ServeGrpcError


class Histogram:
    """Keeps what is observed."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self.values.append(value)


class Loop:
    """Runs what is to run later at once."""

    def call_later(self, _: float, function: Any) -> None:
        function()


class Access(SimpleNamespace):
    """A router's numbers, and Serve's histograms."""

    def __init__(self) -> None:
        super().__init__(deployment_name="d", app_name="a", actor_id="", calls=0, sent=0)
        self.waits, self.resolutions = Histogram(), Histogram()
        native = SimpleNamespace(
            _event_loop=Loop(),
            _request_router=SimpleNamespace(queue_wait_time_ms_histogram=self.waits),
            _objref_resolution_latency_ms=self.resolutions,
        )
        self.request_router_metrics = RequestRouterMetrics(native)
        self.on_queued = self.on_unqueued = lambda: None


@pytest.fixture
def access() -> Access:
    return Access()


@pytest.fixture
def tally(access: Any) -> Tally:
    return Tally(access)


def test_outcomes_are_told_by_the_type_of_the_error(tally: Tally) -> None:
    users = RayTaskError("f", "traceback", TimeoutError("the user's own")).as_instanceof_cause()
    looks_like_ours = RayTaskError("f", "traceback", DeadlineExceededError("of another call"))
    tally.ended += [
        type(None),
        type(None),
        type(users),
        type(looks_like_ours.as_instanceof_cause()),
        RequestCancelledError,
        BackPressureError,
        ReplicaDiedError,
        ServeGrpcError,
        KeyError,
    ]
    assert tally.outcomes() == {
        "ok": 2,
        "user_exception": 2,
        "cancelled": 1,
        "back_pressure": 1,
        "replica_died": 1,
        "error": 2,
    }
    assert set(tally.outcomes()) <= set(OUTCOMES)


def test_no_outcome_is_lost_or_counted_twice_by_readers_in_other_threads(tally: Tally) -> None:
    def end_calls() -> None:
        for _ in range(20_000):
            tally.ended.append(type(None))

    threads = [threading.Thread(target=end_calls) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.outcomes()
    assert tally.outcomes() == {"ok": 60_000}


def test_every_call_is_observed_once_even_if_its_wait_is_known_first(
    tally: Tally, access: Access
) -> None:
    call: Any = SimpleNamespace(queued_s=0.0)
    tally.on_queued(call)
    tally.on_unqueued()
    tally.on_waited(call)
    tally.resolutions_ms.append(7.0)
    tally.report()  # the access tells of its calls a moment later
    access.calls = access.sent = 3
    tally.report()
    tally.report()
    assert len(access.waits.values) == 3
    assert sorted(access.resolutions.values) == [0, 0, 7]


def test_a_call_that_waits_again_has_waited_since_the_first_time(tally: Tally) -> None:
    call: Any = SimpleNamespace(queued_s=0.0)
    tally.on_queued(call)
    since_s = call.queued_s
    tally.on_unqueued()
    tally.on_queued(call)
    assert call.queued_s == since_s
    assert tally.waiting == 1


def test_of_very_many_calls_an_even_sample_is_observed(access: Access) -> None:
    metrics = access.request_router_metrics
    metrics.on_waits([1.0] * 4 * MAX_OBSERVED, at_once=12 * MAX_OBSERVED)
    values = access.waits.values
    assert 0.9 * MAX_OBSERVED <= len(values) <= MAX_OBSERVED
    assert values.count(1.0) == pytest.approx(len(values) / 4, rel=0.05)
