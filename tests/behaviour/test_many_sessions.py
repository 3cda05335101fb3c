"""Hundreds of real sessions in one process: calls over each, what they cost idle, and their end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator

import pytest

from bench.growth.server import allow_open_files
from bench.idle_sessions.callers import facts_of, over
from bench.idle_sessions.measure import measure_idle
from bench.idle_sessions.processes import child
from bench.idle_sessions.replicas import Doors, run_replicas
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.config import Settings
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import Chooser, new_call, send
from tests.descriptors import nothing_left_open
from tests.ray.waiting import eventually_async

MANY = 500
CLOSED_S = 10.0

# Half a thousand servers and their callers take a minute of two cores.
pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[Doors]]:
    """The doors of many replicas, which are in another process."""
    allow_open_files(4 * MANY)
    with (
        tempfile.TemporaryDirectory(prefix="sg-") as folder,
        child(run_replicas, MANY, folder, 4 * MANY) as process,
    ):
        process.answer()
        yield process.ask("start")


async def until_ready(connections: list[Connection]) -> None:
    for connection in connections:
        connection.connect()
    await eventually_async(
        lambda: all(c.peer.state is PeerState.READY for c in connections), timeout_s=60
    )


async def call_each(connections: list[Connection], chooser: Chooser) -> None:
    calls = [new_call(chooser, b"%d" % number) for number in range(len(connections))]
    for connection, call in zip(connections, calls, strict=True):
        send(connection, call)
    for call in calls:
        await asyncio.wait_for(call.wait_done(), 30)
    assert [call.result() for call in calls] == [b"%d" % n for n in range(len(calls))]


@pytest.mark.parametrize("carrier", ["grpc", "local"])
def test_each_of_many_sessions_carries_calls_and_all_close(
    replicas: list[Doors], carrier: str
) -> None:
    async def main() -> float:
        pool, chooser = ConnectionPool(Settings()), Chooser()
        facts = [facts_of(doors, carrier, number) for number, doors in enumerate(replicas)]
        connections = [pool.acquire(one, chooser) for one in facts]
        await until_ready(connections)
        for _ in range(3):
            await call_each(connections, chooser)
        assert {connection.peer.carrier for connection in connections} == {carrier}
        for connection in connections:
            pool.release(connection, chooser)
        begin_s = time.monotonic()
        await eventually_async(lambda: all(connection.is_down for connection in connections))
        took_s = time.monotonic() - begin_s
        await pool.aclose()
        await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        return took_s

    with nothing_left_open(), over(carrier):
        assert asyncio.run(main()) < CLOSED_S


@pytest.mark.parametrize("carrier", ["grpc", "local"])
def test_replicas_that_come_and_go_get_fresh_sessions_each_time(
    replicas: list[Doors], carrier: str
) -> None:
    """As for a caller whose subset changes again and again."""

    async def main() -> None:
        pool, chooser = ConnectionPool(Settings()), Chooser()
        facts = [facts_of(doors, carrier, number) for number, doors in enumerate(replicas[:20])]
        before: list[Connection] = []
        for round_ in range(10):
            connections = [pool.acquire(one, chooser) for one in facts]
            assert not set(connections) & set(before)
            if round_ % 2:  # else they are gone again before their sessions are open
                await until_ready(connections)
                await call_each(connections, chooser)
            else:
                for connection in connections:
                    connection.connect()
            for connection in connections:
                pool.release(connection, chooser)
            before = connections
        await eventually_async(lambda: all(connection.is_down for connection in before))
        await eventually_async(lambda: pool._ticker is None)
        assert (pool._connections, pool._retired) == ({}, set())
        await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    with nothing_left_open(), over(carrier):
        asyncio.run(main())


# Of those of gRPC, 43 KiB are a bare channel's with its stream (docs/decisions/0030).
@pytest.mark.parametrize(("carrier", "kib"), [("grpc", 62.0), ("local", 11.0)])
def test_an_idle_session_costs_its_caller_next_to_nothing(carrier: str, kib: float) -> None:
    ours, _ = measure_idle(carrier, MANY, 10.0, callers=1)
    assert ours.private_kib <= kib
    # Of a thousand 1 %, on a machine that is not busy; of half as many, on any machine.
    assert ours.cpu <= 0.015
