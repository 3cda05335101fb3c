"""A replica that fails what others do well: when it gets calls, and when again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serve_grpc.caller import trouble
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.replicas import Replicas
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.routing.peer import PeerState, ReplicaFacts
from tests.behaviour.serving import SECRET, Chooser, new_call, serve
from tests.ray.waiting import eventually_async

ENOUGH = 30
"""Outcomes in a row that leave no doubt."""


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "REST_S", (0.05, 0.2))


class Pair:
    """Two replicas with open sessions: `bad`, which is going to fail, and `good`."""

    def __init__(self, bad: Connection, good: Connection, replicas: Replicas) -> None:
        self.bad, self.good, self.replicas = bad, good, replicas

    def fail(self, times: int = ENOUGH, *, model_id: str = "") -> None:
        """Calls of the bad one end with the user's exception."""
        for _ in range(times):
            self.replicas.on_failure(self.bad, a_call(model_id))

    def succeed(self, connection: Connection, times: int = ENOUGH) -> None:
        """Calls of it end well."""
        for _ in range(times):
            self.replicas.on_success(connection, a_call())


def a_call(model_id: str = "") -> Call:
    call = new_call(Chooser())
    call.fields.multiplexed_model_id = model_id
    return call


def with_pair(
    check: Callable[[Pair], Coroutine[Any, Any, None]], model_ids: frozenset[str] = frozenset()
) -> None:
    async def main() -> None:
        pool = ConnectionPool(Settings())
        pool._secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
        chooser = Chooser()
        replicas = Replicas(pool, chooser, node_id="", zone="")
        servers, facts = [], []
        for name in ("bad", "good"):
            server, port, _ = await serve(replica_id=name)
            servers.append(server)
            ids = model_ids if name == "bad" else frozenset()
            facts.append(
                ReplicaFacts(name, f"127.0.0.1:{port}", max_ongoing_requests=9, model_ids=ids)
            )
        try:
            replicas.update(facts, ())
            bad, good = (replicas.connection_to(name) for name in ("bad", "good"))
            assert bad is not None
            assert good is not None
            for connection in (bad, good):
                connection.connect()
            await eventually_async(lambda: bad.takes_calls and good.takes_calls)
            await check(Pair(bad, good, replicas))
        finally:
            await pool.aclose()
            for server in servers:
                await server.stop(0)

    asyncio.run(main())


def test_a_failing_replica_rests_longer_each_time_and_is_pardoned_when_it_succeeds() -> None:
    async def check(pair: Pair) -> None:
        peer = pair.bad.peer
        pair.fail(1)
        pair.succeed(pair.good)
        pair.fail()
        pauses = []
        for _ in range(3):
            assert peer.penalised
            assert not pair.bad.takes_calls
            started_s = asyncio.get_running_loop().time()
            await eventually_async(lambda: pair.bad.takes_calls)
            pauses.append(asyncio.get_running_loop().time() - started_s)
            pair.fail(1)
        assert pauses[2] > pauses[0]
        pair.succeed(pair.bad, 1)
        assert peer.penalised  # of a call that was on its way while it rests
        await eventually_async(lambda: pair.bad.takes_calls)
        pair.succeed(pair.bad, 1)
        assert not peer.penalised

    with_pair(check)


def test_a_replica_that_was_pardoned_and_fails_again_rests_again() -> None:
    async def check(pair: Pair) -> None:
        pair.fail(1)
        pair.succeed(pair.good)
        pair.fail()
        pair.bad.peer.pardon()  # as when the other one cannot be reached
        pair.fail(1)
        assert pair.bad.peer.penalised

    with_pair(check)


def test_where_all_fail_or_nobody_else_did_the_work_none_is_penalised() -> None:
    async def check(pair: Pair) -> None:
        pair.fail()
        assert not pair.bad.peer.penalised
        for _ in range(ENOUGH):
            pair.replicas.on_failure(pair.good, a_call())
        pair.fail()
        assert not pair.bad.peer.penalised

    with_pair(check)


def test_a_penalised_replica_is_pardoned_when_the_others_are_no_better_any_more() -> None:
    async def check(pair: Pair) -> None:
        pair.fail(1)
        pair.succeed(pair.good)
        pair.fail()
        assert pair.bad.peer.penalised
        pair.good.peer.state = PeerState.LOST
        pair.fail(1)
        assert not pair.bad.peer.penalised

    with_pair(check)


def test_calls_for_a_model_tell_nothing_of_a_replica() -> None:
    async def check(pair: Pair) -> None:
        pair.fail(model_id="m")
        assert not pair.replicas.outliers
        pair.fail(1)
        pair.succeed(pair.good)
        pair.fail(model_id="m")
        assert not pair.bad.peer.penalised

    with_pair(check)


def test_the_holder_of_a_model_is_never_penalised() -> None:
    async def check(pair: Pair) -> None:
        pair.fail(1)
        pair.succeed(pair.good)
        pair.fail()
        assert not pair.bad.peer.penalised

    with_pair(check, frozenset({"m"}))
