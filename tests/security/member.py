"""A caller with the cluster's secret that sends what it likes over a real session."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from serve_grpc._generated.replica_pb2 import ReplicaBatch
from serve_grpc.caller.connection import Connection
from serve_grpc.config import Settings
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import REPLICA_ID, SECRET, Chooser, connect, new_call, send
from tests.ray.waiting import eventually_async
from tests.security.http2 import SESSION
from tests.unit.sessions import new_caller

__all__ = ["Member", "legitimate", "member", "p99_ms", "round_trips"]


class Member:
    """An open session; `write` sends any bytes, `read` gives a message or None at its end."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.session = new_caller(
            replica_id=REPLICA_ID, secret=SECRET, max_message_bytes=4 * 1024 * 1024
        )

    async def shake_hands(self) -> None:
        """Prove membership."""
        while self.session.state is not SessionState.OPEN:
            await self.write(self.session.outbox.take())
            message = await self.read()
            assert message is not None
            self.session.receive(message)

    async def write(self, message: bytes) -> None:
        await self.call.write(message)

    async def read(self) -> bytes | None:
        """The next message, None at the end of the session."""
        try:
            message = await self.call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return None
        return None if message is grpc.aio.EOF else bytes(message)

    async def read_to_end(self) -> list[bytes]:
        """All that comes until the replica ends the session."""
        messages = []
        while (message := await self.read()) is not None:
            messages.append(message)
        return messages

    async def read_to_pong(self, ping: int) -> None:
        """Read on until the replica has taken in all that was sent before this ping."""
        while (message := await self.read()) is not None:
            if ReplicaBatch.FromString(message).pong == ping:
                return
        raise AssertionError("the session ended first")


@contextlib.asynccontextmanager
async def member(port: int) -> AsyncIterator[Member]:
    """A member's session, open."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.stream_stream(SESSION)()
        one = Member(call)
        await one.shake_hands()
        yield one
        call.cancel()


@contextlib.asynccontextmanager
async def legitimate(port: int, settings: Settings | None = None) -> AsyncIterator[Any]:
    """A caller as handles use it: (connection, chooser), ready."""
    chooser = Chooser()
    connection = connect(port, chooser, settings)
    connection.connect()
    try:
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        yield connection, chooser
    finally:
        await connection.aclose()


async def round_trips(connection: Connection, chooser: Chooser, count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    seconds = []
    for number in range(count):
        payload = b"%d" % number
        call = new_call(chooser, payload)
        begin = time.perf_counter()
        send(connection, call, is_new=True)
        await call.wait_done()  # before Python 3.12 `wait_for` may swallow a cancel of this task
        seconds.append(time.perf_counter() - begin)
        assert call.result() == payload
    return seconds


def p99_ms(seconds: list[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1e3
