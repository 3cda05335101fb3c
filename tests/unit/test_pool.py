"""The connection pools of event loops."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from typing import Any

import pytest

from serve_grpc.caller import pool as pool_module
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.pool import ConnectionPool, pool_of
from serve_grpc.config import Settings
from serve_grpc.routing.peer import PeerState, ReplicaFacts
from tests.ray.waiting import eventually_async


def test_pools_of_closed_loops_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: [b""])

    async def use() -> weakref.ref[object]:
        pool = pool_of()
        assert pool is pool_of()
        return weakref.ref(pool)

    pools = [asyncio.run(use()) for _ in range(5)]
    gc.collect()
    assert [pool() is not None for pool in pools] == [False] * 4 + [True]


def test_a_heartbeat_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: [b""])
    beats: Counter[str] = Counter()

    def beat(connection: Connection, _: float) -> None:
        beats[connection.peer.facts.replica_id] += 1
        if connection.peer.facts.replica_id != "b":
            raise RuntimeError("no beat")

    monkeypatch.setattr(Connection, "beat", beat)

    async def main() -> None:
        pool = ConnectionPool(Settings(heartbeat_interval_s=0.01))
        user: Any = object()
        for name in "abc":
            facts = ReplicaFacts(name, f"{name}:1", max_ongoing_requests=1)
            pool.acquire(facts, user).look_s = 0.0  # as with a session
        await eventually_async(lambda: all(beats[name] >= 3 for name in "abc"))
        await pool.aclose()

    asyncio.run(main())


def test_sessions_are_counted_by_their_state_and_what_carries_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: [b""])

    async def main() -> Counter[tuple[str, str, str, str]]:
        pool, user = ConnectionPool(Settings()), object()
        states = {"a": "local", "b": "local", "c": "grpc", "d": ""}
        for name, carrier in states.items():
            facts = ReplicaFacts(name, f"{name}:1", deployment="Echo", application="app")
            peer = pool.acquire(facts, user).peer  # type: ignore[arg-type]
            peer.become(PeerState.CONNECTING)
            peer.become(PeerState.READY if carrier else PeerState.LOST)
            peer.carrier = carrier
        pool.acquire(ReplicaFacts("idle", "idle:1"), user)  # type: ignore[arg-type]
        counted = pool.states()
        await pool.aclose()
        return counted

    assert asyncio.run(main()) == {
        ("app", "Echo", "ready", "local"): 2,
        ("app", "Echo", "ready", "grpc"): 1,
        ("app", "Echo", "lost", ""): 1,
    }
