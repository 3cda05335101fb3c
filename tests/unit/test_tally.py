"""What a router counts: outcomes from any thread, and what Serve's histograms are told."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_grpc._serve.router_metrics import MAX_OBSERVED, SAMPLE, RequestRouterMetrics
from serve_grpc.caller import tally as tally_module
from serve_grpc.caller.outcomes import (
    KINDS,
    Cancelled,
    GivenUp,
    Lost,
    Outcome,
    Raised,
    Result,
    Value,
)
from serve_grpc.caller.tally import Tally
from serve_grpc.carriers.counters import Counters
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


class Adapter(SimpleNamespace):
    """A router's numbers, and Serve's histograms."""

    def __init__(self) -> None:
        super().__init__(deployment_name="d", app_name="a", actor_id="", calls=0, sent=0)
        self.waits, self.resolutions = Histogram(), Histogram()
        serves = SimpleNamespace(
            _event_loop=Loop(),
            _request_router=SimpleNamespace(queue_wait_time_ms_histogram=self.waits),
            _objref_resolution_latency_ms=self.resolutions,
        )
        self.request_router_metrics = RequestRouterMetrics(serves)
        self.on_queued = self.on_unqueued = lambda: None


@pytest.fixture
def adapter() -> Adapter:
    return Adapter()


@pytest.fixture
def tally(adapter: Any) -> Tally:
    return Tally(adapter)


def test_outcomes_are_told_by_their_kind(tally: Tally) -> None:
    users = RayTaskError("f", "traceback", TimeoutError("the user's own")).as_instanceof_cause()
    looks_like_ours = RayTaskError("f", "traceback", DeadlineExceededError("of another call"))
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    outcomes: list[Outcome] = [
        Result(b""),
        Value(1),
        Raised(users),
        Raised(looks_like_ours.as_instanceof_cause()),
        Raised(RequestCancelledError("id")),
        Raised(full),
        Raised(ReplicaDiedError("lost")),
        Raised(ServeGrpcError("closed")),
        Raised(KeyError()),
        Cancelled(),
        Lost("replica", "", "cut", False),
        GivenUp("closed"),
    ]
    tally.ended += [outcome.kind for outcome in outcomes]
    assert tally.outcomes() == {
        "ok": 2,
        "user_exception": 2,
        "cancelled": 2,
        "back_pressure": 1,
        "replica_died": 2,
        "error": 3,
    }
    assert set(tally.outcomes()) <= set(KINDS)


def test_no_outcome_is_lost_or_counted_twice_by_readers_in_other_threads(tally: Tally) -> None:
    def end_calls() -> None:
        for _ in range(20_000):
            tally.ended.append("ok")

    threads = [threading.Thread(target=end_calls) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.outcomes()
    assert tally.outcomes() == {"ok": 60_000}


def test_every_call_is_observed_once_even_if_its_wait_is_known_first(
    tally: Tally, adapter: Adapter
) -> None:
    call: Any = SimpleNamespace(queued_s=0.0)
    tally.on_queued(call)
    tally.on_unqueued()
    tally.on_waited(call)
    tally.resolutions_ms.append(7.0)
    tally.report()  # the adapter tells of its calls a moment later
    adapter.calls = adapter.sent = 3
    tally.report()
    tally.report()
    assert len(adapter.waits.values) == 3
    assert sorted(adapter.resolutions.values) == [0, 0, 7]


def test_a_call_that_waits_again_has_waited_since_the_first_time(tally: Tally) -> None:
    call: Any = SimpleNamespace(queued_s=0.0)
    tally.on_queued(call)
    since_s = call.queued_s
    tally.on_unqueued()
    tally.on_queued(call)
    assert call.queued_s == since_s
    assert tally.waiting == 1


def test_of_very_many_calls_an_even_sample_is_observed(adapter: Adapter) -> None:
    metrics = adapter.request_router_metrics
    metrics.on_waits([1.0] * 4 * MAX_OBSERVED, at_once=12 * MAX_OBSERVED)
    values = adapter.waits.values
    assert 0.9 * SAMPLE <= len(values) <= SAMPLE
    assert values.count(1.0) == pytest.approx(len(values) / 4, rel=0.05)


# ------------------------------------------------------------ of the connections


class Played:
    """In the place of each class of metric: keeps what it was told, by the metric's name."""

    told: dict[str, list[Any]]

    def __init__(self, name: str, *_: object, **__: object) -> None:
        self._told = self.told.setdefault(name, [])

    def tell(self, *what: Any) -> None:
        self._told += what


class PlayedTicker:
    def __init__(self, side: str, actor_id: str, report: Any) -> None:
        self.start, self.stop = report, lambda: None


class PlayedPool:
    """Sessions over both carriers, and one that had to do without the lane."""

    is_alive = True

    def __init__(self) -> None:
        self.counters = defaultdict(Counters, {("a", "d"): Counters(local_fallbacks=3)})

    def states(self) -> Counter[tuple[str, str, str, str]]:
        return Counter({("a", "d", "ready", "local"): 2, ("a", "d", "lost", ""): 1})


def test_sessions_and_fallbacks_of_the_lane_are_told(
    monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    monkeypatch.setattr(Played, "told", {}, raising=False)
    for name in ("Totals", "Levels", "TrafficMetrics"):
        monkeypatch.setattr(tally_module, name, Played)
    monkeypatch.setattr(tally_module, "Ticker", PlayedTicker)
    monkeypatch.setattr(tally_module, "_sessions", tally_module._Sessions())
    pool: Any = PlayedPool()
    tally_module.CallerMetrics(pool, "actor").add(tally)
    assert Played.told["serve_grpc_local_fallbacks"] == [3]
    assert Played.told["serve_grpc"] == [pool.counters["a", "d"]]
    assert Played.told["serve_grpc_sessions"] == [
        {("d", "a", "actor", "ready", "local"): 2, ("d", "a", "actor", "lost", ""): 1}
    ]
