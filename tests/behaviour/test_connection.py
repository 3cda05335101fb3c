"""A connection over a real socket: opening, losing, coming back, refusing."""

from __future__ import annotations

import asyncio
import pickle
import socket

import pytest

from serve_grpc.caller import connection as connection_module
from serve_grpc.config import Settings
from serve_grpc.payload import LARGE_BYTES
from serve_grpc.protocol.handshake import BUFFERS
from serve_grpc.protocol.replica_handshake import ReplicaHandshake
from serve_grpc.routing.peer import PeerState
from serve_grpc.serialization import get_serializer
from tests.behaviour.serving import Chooser, connect, new_call, send, serve
from tests.fakes.memory import HeapMemory
from tests.ray.waiting import eventually_async


async def ready(connection):
    connection.connect()
    await eventually_async(lambda: connection.peer.state is PeerState.READY)


async def echo(connection, chooser, payload):
    call = new_call(chooser, payload)
    send(connection, call)
    await call.wait_done()
    return call.result()


def test_calls_of_every_size_are_answered():
    async def main():
        server, port, _ = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        await ready(connection)
        for size in (0, 1, 16_384, 16_385, 1_000_000, 4_194_304):
            assert await echo(connection, chooser, b"x" * size) == b"x" * size
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


@pytest.mark.parametrize("is_announced", [True, False])
def test_buffers_follow_a_pickle_only_where_the_replica_reads_that(monkeypatch, is_announced):
    """A replica of an older version does not announce it, and gets a pickle as it was always."""
    if not is_announced:
        told = ReplicaHandshake.welcome

        def welcome(self, **changes):
            message = told(self, **changes)
            message.features.remove(BUFFERS)
            return message

        monkeypatch.setattr(ReplicaHandshake, "welcome", welcome)
    value = [b"small", bytearray(b"x" * LARGE_BYTES), "y" * LARGE_BYTES]
    value.append(pickle.PickleBuffer(bytearray(b"z" * LARGE_BYTES)))
    expected = [*value[:3], bytearray(b"z" * LARGE_BYTES)]

    async def main():
        server, port, _ = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        await ready(connection)
        payload = get_serializer("pickle").dump_response(value, HeapMemory())
        assert payload.has_buffers
        answers = [await echo(connection, chooser, each) for each in (payload, payload)]
        assert [answer[:1] == b"\0" for answer in answers] == [is_announced] * 2
        for answer in answers:  # an echo, so it is what the replica got
            if not is_announced:
                assert pickle.loads(answer) == expected
            assert get_serializer("pickle").load_response(answer) == expected
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


def test_large_and_small_calls_at_once_are_all_answered():
    async def main():
        server, port, _ = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        await ready(connection)
        sizes = [3_000_000, 10, 600_000, 20, 17_000, 30] * 3
        answers = await asyncio.gather(
            *(echo(connection, chooser, bytes([i]) * size) for i, size in enumerate(sizes))
        )
        assert answers == [bytes([i]) * size for i, size in enumerate(sizes)]
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


def test_server_that_comes_back_on_its_port_is_found_again():
    async def main():
        server, port, dispatcher = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        await ready(connection)
        held = new_call(chooser, method="hold")
        send(connection, held)
        await eventually_async(lambda: dispatcher.held)
        await server.stop(0)
        await eventually_async(lambda: chooser.lost)
        assert chooser.lost == [(held, True)]
        assert connection.peer.state is not PeerState.READY
        again = Settings(min_port=port, max_port=port)
        server, same_port, _ = await serve(again)
        assert same_port == port
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        assert await echo(connection, chooser, b"back") == b"back"
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


def test_another_replica_on_the_same_port_is_not_served_a_call_for_the_first():
    async def main():
        server, port, dispatcher = await serve(replica_id="somebody-else")
        chooser = Chooser()
        connection = connect(port, chooser)
        connection.connect()
        await eventually_async(lambda: connection.peer.state is PeerState.LOST)
        assert dispatcher.held == []
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


def test_wrong_secret_opens_no_session_on_either_side():
    async def main():
        server, port, _ = await serve(secret=b"another" * 5)
        chooser = Chooser()
        connection = connect(port, chooser)
        connection.connect()
        await eventually_async(lambda: connection.peer.state is PeerState.LOST)
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


def test_silent_server_is_given_up_after_the_connect_timeout(monkeypatch):
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.3)

    async def main():
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            chooser = Chooser()
            connection = connect(silent.getsockname()[1], chooser)
            connection.connect()
            assert connection.peer.state is PeerState.CONNECTING
            await eventually_async(lambda: connection.peer.state is PeerState.LOST, timeout_s=5)
            await connection.aclose()

    asyncio.run(main())


def test_slow_server_is_not_preferred_for_long_but_goes_on_opening(monkeypatch):
    monkeypatch.setattr(connection_module, "PREFERRED_WAIT_S", 0.2)

    async def main():
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            chooser = Chooser()
            connection = connect(silent.getsockname()[1], chooser)
            connection.connect()
            await eventually_async(lambda: connection.peer.state is PeerState.LOST, timeout_s=5)
            assert connection._session is not None
            await connection.aclose()

    asyncio.run(main())


def test_connection_that_takes_a_while_to_come_up_is_waited_for():
    """As over a long distance, or to a machine that is busy."""

    async def main():
        server, port, _ = await serve()
        tasks = set()

        async def relay(reader, writer):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.close()

        async def accept(reader, writer):
            await asyncio.sleep(0.4)  # the delay under test
            to_server, from_server = (await asyncio.open_connection("127.0.0.1", port))[::-1]
            for pair in ((reader, to_server), (from_server, writer)):
                tasks.add(asyncio.create_task(relay(*pair)))

        slow = await asyncio.start_server(accept, "127.0.0.1", 0)
        chooser = Chooser()
        connection = connect(slow.sockets[0].getsockname()[1], chooser)
        connection.connect()
        try:
            await eventually_async(lambda: connection.peer.state is PeerState.READY, timeout_s=5)
            assert await echo(connection, chooser, b"slow") == b"slow"
        finally:
            await connection.aclose()
            slow.close()
            await server.stop(0)
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_retired_connection_closes_when_its_last_call_is_over():
    async def main():
        server, port, dispatcher = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        await ready(connection)
        held = new_call(chooser, method="hold")
        delivery = send(connection, held)
        await eventually_async(lambda: dispatcher.held)
        connection.retire()
        assert connection.peer.state is PeerState.GONE
        assert dispatcher.closed == []
        delivery.cancel()
        await eventually_async(lambda: dispatcher.closed)
        await server.stop(1)

    asyncio.run(main())


def test_draining_server_takes_no_new_calls_and_finishes_the_old():
    async def main():
        from serve_grpc._generated.replica_pb2 import Reply

        server, port, dispatcher = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        await ready(connection)
        held = new_call(chooser, method="hold")
        send(connection, held)
        await eventually_async(lambda: dispatcher.held)
        await server.drain()
        await eventually_async(lambda: connection.peer.state is PeerState.GONE)
        ((stream, call_id),) = dispatcher.held
        stream.session.reply(call_id, Reply.RESULT, b"finished")
        stream.kick()
        await held.wait_done()
        assert held.result() == b"finished"
        await connection.aclose()
        await server.stop(1)

    asyncio.run(main())


def test_full_range_of_ports_is_an_error_that_names_it():
    async def main():
        server, port, _ = await serve()
        with pytest.raises(RuntimeError, match=f"SERVE_GRPC_MIN_PORT={port}"):
            await serve(Settings(min_port=port, max_port=port))
        await server.stop(1)

    asyncio.run(main())


def test_range_of_ports_skips_those_in_use():
    async def main():
        server, port, _ = await serve()
        low, high = (port, port + 3) if port < 65_000 else (port - 3, port)
        other, other_port, _ = await serve(Settings(min_port=low, max_port=high))
        assert other_port != port
        assert low <= other_port <= high
        await other.stop(1)
        await server.stop(1)

    asyncio.run(main())
