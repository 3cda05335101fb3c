"""A replica with both doors, the lane's and gRPC's, and its caller, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_grpc.caller.connection import Connection
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from tests.behaviour.serving import REPLICA_ID, SECRET, Chooser, new_call, send, serve
from tests.ray.waiting import eventually_async

__all__ = ["HERE", "Replica", "answers", "opened", "run", "said"]

HERE = "this-node"


class Replica:
    """Both doors of one replica, and a caller of it."""

    def __init__(self, server: ReplicaServer, port: int, path: str) -> None:
        self.server, self.port, self.path = server, port, path
        self.lane = LocalServer(server.host, Settings())
        self.counters = Counters()

    def caller(self, settings: Settings | None = None, **facts: Any) -> Connection:
        """Not opened yet."""
        known = {"address": f"127.0.0.1:{self.port}", "local_path": self.path, "node_id": HERE}
        peer = Peer(ReplicaFacts(REPLICA_ID, **{**known, "max_ongoing_requests": 9, **facts}))
        secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
        connection = Connection(peer, settings or Settings(), secrets, self.counters)
        connection.users.add(Chooser())
        return connection


def run(path: str, test: Callable[[Replica], Awaitable[None]]) -> None:
    async def main() -> None:
        server, port, _ = await serve()
        replica = Replica(server, port, path)
        try:
            await test(replica)
        finally:
            await replica.lane.stop()
            await server.stop(0)

    asyncio.run(asyncio.wait_for(main(), 30))


async def opened(connection: Connection) -> Connection:
    connection.connect()
    await eventually_async(lambda: connection.peer.state is PeerState.READY)
    return connection


async def answers(connection: Connection) -> bool:
    """Whether a call gets there and back."""
    (chooser,) = connection.users
    assert isinstance(chooser, Chooser)
    call = new_call(chooser, b"hello")
    send(connection, call)
    await call.wait_done()
    return bool(call.result() == b"hello")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [r.getMessage() for r in caplog.records if r.name == LOGGER_NAME]
    return [line for line in lines if "over gRPC" in line]
