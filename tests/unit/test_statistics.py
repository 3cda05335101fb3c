"""The statistics of a handle, from what its parts know, and without waiting for any of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import handle as serve_handle

import serve_grpc
from serve_grpc import statistics
from serve_grpc.caller.feed import Feed
from serve_grpc.carriers.counters import Counters
from serve_grpc.handle import UNREACHABLE, DeploymentHandle
from serve_grpc.routing.peer import PeerState
from serve_grpc.statistics import ReplicaStatistics, handle_statistics


def new_peer(number: int, **state: Any) -> Any:
    """A replica as routing sees it."""
    facts = SimpleNamespace(
        replica_id=f"replica-{number}", address=f"127.0.0.1:{number}", max_ongoing_requests=5
    )
    given = {"state": PeerState.READY, "carrier": "grpc", "in_flight": 1, "reported": 2}
    flags = {"blocked": False, "penalised": False}
    return SimpleNamespace(facts=facts, **{**given, **flags, **state})


def new_router(peers: list[Any], **news: Any) -> Any:
    """A router of ours with these replicas."""
    tally = SimpleNamespace(
        replicas=SimpleNamespace(peers=peers),
        counters=Counters(1, 2, 3, 4, 5, 6, 7),
        outcomes=lambda: {"ok": 7},
        waiting=8,
        rejections=9,
        retries=10,
    )
    feed = Feed(**{"is_ready": True, **news})
    return SimpleNamespace(tally=tally, feed=feed, is_used=True)


def statistics_with(monkeypatch: pytest.MonkeyPatch, router: Any) -> Any:
    """Of a handle whose calls go through that router."""
    handle: DeploymentHandle[Any] = DeploymentHandle("deployment", "app")
    monkeypatch.setattr(handle, "_known_router", lambda: router)
    return handle_statistics(handle)


def test_each_number_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"state": PeerState.LOST, "carrier": "", "in_flight": 4, "blocked": True}
    peers = [new_peer(1), new_peer(2, **lost), new_peer(3, carrier="local", in_flight=0)]
    seen = statistics_with(monkeypatch, new_router(peers))
    assert (seen.deployment_name, seen.app_name) == ("deployment", "app")
    assert (seen.transport, seen.fallback_reason) == ("serve_grpc", None)
    assert seen.calls == {"ok": 7}
    assert (seen.in_flight, seen.waiting, seen.rejections, seen.retries) == (5, 8, 9, 10)
    assert (seen.messages_sent, seen.bytes_sent, seen.requests_sent) == (1, 2, 3)
    assert (seen.messages_received, seen.bytes_received, seen.replies_received) == (4, 5, 6)
    assert seen.local_fallbacks == 7
    assert [replica.carrier for replica in seen.replicas] == ["grpc", "", "local"]
    assert seen.replicas[1] == ReplicaStatistics(
        replica_id="replica-2",
        address="127.0.0.1:2",
        state="lost",
        carrier="",
        in_flight=4,
        reported_load=2,
        max_ongoing_requests=5,
        is_blocked=True,
        is_penalised=False,
    )
    assert seen.replicas[0].state == "ready"


def test_a_penalised_replica_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    (seen,) = statistics_with(monkeypatch, new_router([new_peer(1, penalised=True)])).replicas
    assert (seen.is_penalised, seen.is_blocked) == (True, False)


def test_before_the_first_call_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = statistics_with(monkeypatch, None)
    assert (seen.calls, seen.replicas) == ({}, ())
    assert seen.transport in ("undecided", "by reference")
    assert (seen.in_flight, seen.waiting, seen.messages_sent, seen.bytes_received) == (0, 0, 0, 0)


def test_while_replicas_are_not_known_the_transport_is_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = new_router([], is_ready=False)
    router.tally.replicas = None
    seen = statistics_with(monkeypatch, router)
    assert (seen.transport, seen.replicas, seen.in_flight) == ("undecided", (), 0)
    assert seen.waiting == 8


def test_a_fallback_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = statistics_with(monkeypatch, new_router([], fallback_reason="has no endpoint"))
    assert (seen.transport, seen.fallback_reason) == ("Serve's gRPC", "has no endpoint")


def test_over_ray_client_no_replica_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "inside_ray_client_context", lambda: True)
    seen = statistics_with(monkeypatch, None)
    assert seen.fallback_reason == UNREACHABLE


def test_a_handle_of_serves_is_refused_with_the_way_out() -> None:
    handle: Any = serve_handle.DeploymentHandle("deployment", "app")
    with pytest.raises(TypeError, match=r"got ray\.serve\.handle\.DeploymentHandle.*serve_grpc"):
        handle_statistics(handle)
    with pytest.raises(TypeError, match=r"got builtins\.str$"):
        serve_grpc.handle_statistics("deployment")  # type: ignore[arg-type]
