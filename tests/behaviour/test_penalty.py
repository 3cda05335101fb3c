"""A replica that fails its calls while others do not: when it gets calls, and when again."""

from __future__ import annotations

import asyncio

import pytest

from serve_grpc.caller import penalty
from serve_grpc.caller.connection import Connection
from tests.behaviour.serving import Owner, connect, serve
from tests.ray.waiting import eventually_async


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty, "REST_S", (0.05, 0.2))


def fail_until_poor(connection: Connection, *, has_better: bool) -> None:
    while not connection.peer.is_poor:
        connection.penalty.on_failure(has_better=lambda: has_better)


async def run(check: object) -> None:
    server, port, _ = await serve()
    connection = connect(port, Owner())
    connection.connect()
    try:
        await eventually_async(lambda: connection.takes_calls)
        await check(connection)  # type: ignore[operator]
    finally:
        await connection.aclose()
        await server.stop(0)


def test_a_failing_replica_rests_longer_each_time_and_is_pardoned_when_it_succeeds() -> None:
    async def check(connection: Connection) -> None:
        peer = connection.peer
        fail_until_poor(connection, has_better=True)
        pauses = []
        for _ in range(3):
            assert peer.penalised
            assert not connection.takes_calls
            started_s = asyncio.get_running_loop().time()
            await eventually_async(lambda: connection.takes_calls)
            pauses.append(asyncio.get_running_loop().time() - started_s)
            connection.penalty.on_failure(has_better=lambda: True)
        assert pauses[2] > pauses[0]
        while peer.penalised:
            peer.on_success()
        assert connection.takes_calls

    asyncio.run(run(check))


def test_where_all_fail_none_is_penalised() -> None:
    async def check(connection: Connection) -> None:
        fail_until_poor(connection, has_better=False)
        assert not connection.peer.penalised
        fail_until_poor(connection, has_better=True)
        connection.penalty.on_failure(has_better=lambda: True)
        assert connection.peer.penalised
        await eventually_async(lambda: connection.takes_calls)
        connection.penalty.on_failure(has_better=lambda: False)  # the others are no better any more
        assert not connection.peer.penalised

    asyncio.run(run(check))
