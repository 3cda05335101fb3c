"""Caller and server on each kind of event loop."""

from __future__ import annotations

import asyncio

import pytest

from serve_grpc.routing.peer import PeerState
from tests.behaviour.loops import LOOPS, run_on
from tests.behaviour.observed import plain_answers
from tests.behaviour.serving import Answering, Chooser, connect, new_call, send, serve
from tests.ray.waiting import eventually_async

each_loop = pytest.mark.parametrize("loop", LOOPS)


@each_loop
def test_calls_of_all_sizes_and_doors_are_answered(loop: str) -> None:
    async def main() -> None:
        server, port, _ = await serve(dispatcher=Answering())
        chooser = Chooser()
        connection = connect(port, chooser)
        connection.connect()
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        payloads = [b"x" * size for size in (0, 1, 20_000, 700_000, 4_000_000, 10)] * 3
        calls = [new_call(chooser, payload) for payload in payloads]
        for call in calls:
            send(connection, call)
        await asyncio.gather(*(call.wait_done() for call in calls))
        assert [call.result() for call in calls] == payloads
        assert await plain_answers(port) == ["plain"] * 4
        await connection.aclose()
        await server.stop(1)

    run_on(loop, main())


@each_loop
def test_lost_and_found_and_given_up(loop: str) -> None:
    async def main() -> None:
        server, port, dispatcher = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        connection.connect()
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        held = new_call(chooser, method="hold")
        send(connection, held)
        waiting = asyncio.ensure_future(held.wait_done())
        await eventually_async(lambda: dispatcher.held)
        await server.stop(0)
        await eventually_async(lambda: chooser.lost)
        await waiting
        assert chooser.lost == [(held, True)]
        await eventually_async(lambda: connection.peer.state is PeerState.LOST)
        await connection.aclose()

    run_on(loop, main())
