"""An application on a Ray with `RAY_USE_TLS=1`: calls work, the wire is TLS, others are refused."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import serve_grpc
from serve_grpc.caller.connection import Connection
from serve_grpc.config import Settings, settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from tests.behaviour.serving import Chooser, new_call, send
from tests.ray.apps.guarded import Guarded
from tests.ray.scripts import own_ray
from tests.ray.waiting import eventually_async
from tests.security.endpoints import OPTIONS, Target, targets_of

LOOPBACK = "127.0.0.1"
TLS_HANDSHAKE, TLS_DATA = 0x16, 0x17
PREFACE = b"PRI * HTTP/2.0"
WORD = b"a word that nobody on the path may read"

FOREIGN = Settings(
    use_tls=True,
    tls_cert_path=os.environ["FOREIGN_CERT"],
    tls_key_path=os.environ["FOREIGN_KEY"],
    tls_ca_path=settings.tls_ca_path,
)
"""Of a peer that trusts the replica, with a certificate of an authority of its own."""


class Recorder:
    """A relay before a replica's port that keeps what passes, in both directions."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self.passed = [bytearray(), bytearray()]

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_connection(*self._target)
        pairs = ((reader, theirs[1], self.passed[0]), (theirs[0], writer, self.passed[1]))
        for pair in pairs:
            self._tasks.add(asyncio.create_task(self._relay(*pair)))

    async def _relay(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray
    ) -> None:
        while data := await source.read(65_536):
            kept += data
            sink.write(data)
            await sink.drain()
        sink.close()

    async def stop(self) -> None:
        """Let go of every connection."""
        self._server.close()
        for task in self._tasks:
            task.cancel()


def record_types(data: bytes) -> set[int]:
    """Types of the TLS records that the bytes are made of."""
    types, at = set(), 0
    while at + 5 <= len(data):
        assert data[at + 1] == 3, "not a TLS record"
        types.add(data[at])
        at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
    return types


async def outcome(
    target: Target, of_peer: Settings, *, relayed: bool = False
) -> tuple[PeerState, list[bytearray]]:
    """A session of a peer that knows the secret: the state it came to, and what passed."""
    host, port = target.address.rsplit(":", 1)
    recorder = Recorder(host, int(port))
    relay = await recorder.start()
    address = f"{LOOPBACK}:{relay}" if relayed else target.address
    peer = Peer(ReplicaFacts(target.replica_id, address, max_ongoing_requests=5))
    secrets = ClusterSecrets(lambda: (target.secret,), (target.secret,))
    connection, chooser = Connection(peer, of_peer, secrets), Chooser()
    connection.users.add(chooser)
    connection.connect()
    await eventually_async(lambda: peer.state in (PeerState.READY, PeerState.LOST), timeout_s=30)
    state = peer.state
    if state is PeerState.READY:
        await ask(connection, chooser)
    await connection.aclose()
    await recorder.stop()
    return state, recorder.passed


async def ask(connection: Connection, chooser: Any) -> None:
    """One call, with the word in it."""
    call = new_call(chooser, WORD, "__call__")
    send(connection, call)
    await call.wait_done()
    assert call.result() == WORD


def main() -> None:
    assert settings.use_tls
    with own_ray():
        app = serve_grpc.deployment(**OPTIONS)(Guarded).bind()
        handle = serve_grpc.run(app, name="tls", route_prefix=None).options(_by_reference=False)
        assert handle.remote({"a", "set"}).result(timeout_s=60) == {"a", "set"}
        assert list(handle.options(stream=True).items.remote(3)) == [0, 1, 2]
        statistics = serve_grpc.handle_statistics(handle)
        assert statistics.transport == "serve_grpc"
        # On one node, and yet: who switches TLS on gets no door without it.
        assert [replica.carrier for replica in statistics.replicas] == ["grpc"]
        (target,) = targets_of(handle)

        state, passed = asyncio.run(outcome(target, settings, relayed=True))
        assert state is PeerState.READY
        for data in map(bytes, passed):
            assert {TLS_HANDSHAKE, TLS_DATA} <= record_types(data)
            assert WORD not in data
            assert PREFACE not in data
        for stranger in (Settings(), FOREIGN):
            state, _ = asyncio.run(outcome(target, stranger))
            assert state is PeerState.LOST
        assert handle.remote("after").result(timeout_s=60) == "after"


if __name__ == "__main__":
    main()
