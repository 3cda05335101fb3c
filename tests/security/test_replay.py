"""Whoever recorded the bytes of a connection can do nothing with them on another one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from serve_grpc._generated.replica_pb2 import CallRequest, Error
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import SECRET, Chooser, Echo, connect, new_call, send, serve
from tests.peer.plain_client import CALL, PlainClient
from tests.ray.waiting import eventually_async


class Counting(Echo):
    """Counts what was let in: requests of sessions, and plain calls."""

    def __init__(self) -> None:
        super().__init__()
        self.let_in = 0

    def on_arrival(self, stream: Any, arrival: Any) -> None:
        self.let_in += len(arrival.requests)
        super().on_arrival(stream, arrival)

    def on_plain_call(self, call: Any) -> None:
        self.let_in += 1
        call.end(Error(code=Error.INTERNAL, message="let in"))


class Recorder:
    """A relay on the path to a port, which keeps the bytes that callers send."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        for source, replies, kept in (
            (reader, to_server, self.sent),
            (from_server, writer, []),
        ):
            self._tasks.add(asyncio.create_task(self._relay(source, replies, kept)))

    async def _relay(
        self, source: asyncio.StreamReader, replies: asyncio.StreamWriter, kept: list[bytes]
    ) -> None:
        while data := await source.read(65_536):
            kept.append(data)
            replies.write(data)
            await replies.drain()
        replies.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()


async def play(port: int, sent: list[bytes], refusal: bytes) -> None:
    """Send the recorded bytes on a connection of its own, until it is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    left, answered = list(sent), b""
    end_s = time.monotonic() + 30
    while refusal not in answered:
        assert time.monotonic() < end_s, answered
        if left:
            writer.write(left.pop(0))
            await writer.drain()
        try:  # at the pace of a real one: a part, and what the server says to it
            part = await asyncio.wait_for(reader.read(65_536), 0.3)
        except asyncio.TimeoutError:
            continue  # nothing to say to this part, or not yet
        assert part, answered  # closed, and not because of a refusal
        answered += part
    writer.close()


def test_a_recorded_session_is_refused() -> None:
    async def main() -> None:
        dispatcher = Counting()
        server, port, _ = await serve(dispatcher=dispatcher)
        recorder = Recorder(port)
        chooser = Chooser()
        connection = connect(await recorder.start(), chooser)
        connection.connect()
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        call = new_call(chooser, b"pay")
        send(connection, call)
        await call.wait_done()
        assert (call.result(), dispatcher.let_in) == (b"pay", 1)
        await connection.aclose()
        assert any(b"pay" in data for data in recorder.sent)
        for _ in range(3):
            await play(port, recorder.sent, b"the proof is wrong")
        assert dispatcher.let_in == 1
        await recorder.stop()
        await server.stop(0)

    asyncio.run(main())


def test_a_recorded_plain_call_is_refused() -> None:
    async def main() -> None:
        dispatcher = Counting()
        server, port, _ = await serve(dispatcher=dispatcher)
        recorder = Recorder(port)
        relayed = await recorder.start()
        request = CallRequest(payload=b"pay").SerializeToString()
        client = PlainClient("127.0.0.1:1", "a-replica", SECRET)  # for its proofs
        async with grpc.aio.insecure_channel(f"127.0.0.1:{relayed}") as channel:
            call = channel.unary_unary(CALL, request_serializer=None, response_deserializer=None)
            with pytest.raises(grpc.aio.AioRpcError, match="let in"):
                await call(request, metadata=client.proof(CALL, request), timeout=20)
        client.close()
        assert dispatcher.let_in == 1
        for _ in range(3):
            await play(port, recorder.sent, b"no valid proof")
        assert dispatcher.let_in == 1
        await recorder.stop()
        await server.stop(0)

    asyncio.run(main())
