"""Calls on a replica that is no longer in the set: they may take as long as they want."""

from __future__ import annotations

import asyncio
import time

import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.carriers import host as host_module
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.routing.peer import PeerState, ReplicaFacts
from tests.behaviour.serving import REPLICA_ID, SECRET, Chooser, Echo, new_call, send, serve
from tests.ray.waiting import eventually_async

SILENCE_S = 0.4


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of silence, after which the replica ends a session."""
    monkeypatch.setattr(host_module, "MAX_SILENCE_S", SILENCE_S)
    monkeypatch.setattr(host_module, "SILENT_HEARTBEATS", 0)


async def still_answers(held: Call, dispatcher: Echo, chooser: Chooser) -> None:
    """After more than the limit the call is there, and ends well."""
    until_s = time.monotonic() + 4 * SILENCE_S
    await eventually_async(lambda: time.monotonic() > until_s or held.done)
    assert chooser.lost == []
    ((stream, call_id),) = dispatcher.held
    stream.session.reply(call_id, Reply.RESULT, b"at last")
    stream.kick()
    await held.wait_done()
    assert held.result() == b"at last"


@pytest.mark.parametrize("news", ["released", "drained", "drained and released"])
def test_a_long_call_on_a_replica_that_leaves_is_not_taken_for_silence(news: str) -> None:
    async def main() -> None:
        settings = Settings(heartbeat_interval_s=SILENCE_S / 8)
        server, port, dispatcher = await serve(settings)
        pool, chooser = ConnectionPool(settings), Chooser()
        pool._secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
        connection = pool.acquire(ReplicaFacts(REPLICA_ID, f"127.0.0.1:{port}"), chooser)
        connection.connect()
        await eventually_async(lambda: connection.takes_calls)
        held = new_call(chooser, method="hold")
        send(connection, held)
        await eventually_async(lambda: dispatcher.held)
        if "drained" in news:
            await server.drain()
            await eventually_async(lambda: connection.peer.state is PeerState.GONE)
        if "released" in news:
            pool.release(connection, chooser)
        try:
            await still_answers(held, dispatcher, chooser)
            await eventually_async(lambda: connection.is_down)
            if "released" in news:
                await eventually_async(lambda: pool._ticker is None)
        finally:
            await pool.aclose()
            await server.stop(0)

    asyncio.run(main())


def test_a_pool_that_closes_ends_what_was_released() -> None:
    async def main() -> None:
        server, port, dispatcher = await serve()
        pool, chooser = ConnectionPool(Settings()), Chooser()
        pool._secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
        connection = pool.acquire(ReplicaFacts(REPLICA_ID, f"127.0.0.1:{port}"), chooser)
        connection.connect()
        await eventually_async(lambda: connection.takes_calls)
        held = new_call(chooser, method="hold")
        send(connection, held)
        await eventually_async(lambda: dispatcher.held)
        pool.release(connection, chooser)
        await pool.aclose()
        assert chooser.lost == [(held, True)]
        await server.stop(0)

    asyncio.run(main())
