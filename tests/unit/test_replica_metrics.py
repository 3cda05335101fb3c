"""What a replica tells Ray's metrics of its own counts; Ray's classes are played."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc.carriers.counters import Counters
from serve_grpc.replica import replica_metrics
from serve_grpc.replica.replica_metrics import ReplicaMetrics


class Played:
    """In the place of each class of metric: keeps what it was told, by the metric's name."""

    told: dict[str, list[tuple[Any, ...]]]

    def __init__(self, name: str, *_: object, **__: object) -> None:
        self._told = self.told.setdefault(name, [])

    def tell(self, *what: Any) -> None:
        self._told.append(what)


class PlayedTicker:
    def __init__(self, side: str, actor_id: str, report: Any) -> None:
        self.start, self.stop = report, lambda: None


def test_requests_rejections_traffic_and_sessions_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Played, "told", {}, raising=False)
    for name in ("Totals", "Levels", "TrafficMetrics"):
        monkeypatch.setattr(replica_metrics, name, Played)
    monkeypatch.setattr(replica_metrics, "Ticker", PlayedTicker)
    replica: Any = SimpleNamespace(
        deployment_name="Echo", app_name="app", replica_id="replica-0", actor_id="actor"
    )
    dispatcher: Any = SimpleNamespace(outcomes=Counter(OK=3, CANCELLED=1), rejections=2)
    host = SimpleNamespace(carriers=lambda: Counter(grpc=3, local=1))
    server: Any = SimpleNamespace(counters=Counters(), host=host)
    ReplicaMetrics(replica, dispatcher, server).start()
    assert Played.told == {
        "serve_grpc_replica_requests": [(3, "ok"), (1, "cancelled")],
        "serve_grpc_replica_rejections": [(2,)],
        "serve_grpc_replica": [(server.counters,)],
        "serve_grpc_replica_sessions": [
            ({("Echo", "app", "replica-0", "grpc"): 3, ("Echo", "app", "replica-0", "local"): 1},)
        ],
    }
