"""A connection that breaks after any number of bytes, over real gRPC; without Ray.

One exchange, from the first byte of HTTP/2 to the last reply, is repeated and cut elsewhere each
time. Payloads are whole or not there; what is said not to have started did not; nothing is left.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_grpc.payload import joined
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import Chooser, Echo, connect, new_call, send, serve
from tests.faults.calls import LoopThread
from tests.faults.tcp_proxy import TcpProxy
from tests.ray.waiting import eventually_async

ROW = 5
SIZES = [5, 40, 90, 11]
"""Inside a frame, in two fragments, in five, and inside a frame again."""


class _Noting(Echo):
    """Remembers what arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[bytes] = []

    def on_arrival(self, stream: Any, arrival: Any) -> None:
        self.arrived += [joined(request.payload) for request in arrival.requests]
        super().on_arrival(stream, arrival)


async def exchange(proxy: TcpProxy, dispatcher: _Noting, number: int) -> list[str]:
    """One session with its calls, until each of them has ended; how they ended."""
    chooser = Chooser()
    payloads = [b"%04d" % number + b"abcd"[i : i + 1] * (n - 4) for i, n in enumerate(SIZES)]
    connection = connect(int(proxy.address.rpartition(":")[2]), chooser)
    connection.connect()
    ends = []
    try:
        known = (PeerState.READY, PeerState.LOST)
        await eventually_async(lambda: connection.peer.state in known)
        if connection.peer.state is PeerState.LOST:
            return ["no session"]
        calls = [new_call(chooser, payload) for payload in payloads]
        for call in calls:
            send(connection, call)
        for call, payload in zip(calls, payloads, strict=True):
            await asyncio.wait_for(call.wait_done(), 10)
            if call.exception() is None:
                assert call.result() == payload
                ends.append("ok")
        for call, may_have_started in chooser.lost:
            ends.append("unknown" if may_have_started else "not started")
            payload = payloads[calls.index(call)]
            assert may_have_started or payload not in dispatcher.arrived
        assert len(ends) == len(SIZES)
    finally:
        await connection.aclose()
    # A session that was cut may still be read to its end there, but not more than once.
    assert len(dispatcher.arrived) == len(set(dispatcher.arrived))
    assert {p for p in dispatcher.arrived if p[:4] == payloads[0][:4]} <= set(payloads)
    return ends


@pytest.mark.usefixtures("tiny_fragments")
@pytest.mark.parametrize("is_up", [True, False], ids=["to the replica", "to the caller"])
@pytest.mark.parametrize(
    "stride", [41, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
def test_a_connection_may_break_at_every_byte(is_up: bool, stride: int, measured: Any) -> None:
    async def main(thread: LoopThread) -> tuple[int, dict[str, int]]:
        dispatcher = _Noting()
        server, port, _ = await serve(dispatcher=dispatcher)
        proxy = TcpProxy(thread, f"127.0.0.1:{port}")
        assert await exchange(proxy, dispatcher, 0) == ["ok"] * len(SIZES)
        seen: dict[str, int] = {}
        cuts = 0
        after = 1
        while True:
            proxy.cut_after(after, is_up=is_up)
            for end in await exchange(proxy, dispatcher, after):
                seen[end] = seen.get(end, 0) + 1
            if proxy.cut_up_to is not None:  # the exchange is shorter than that
                break
            cuts += 1
            after += stride
        await eventually_async(lambda: server.sessions == 0)
        proxy.close()
        await server.stop(0)
        return cuts, seen

    thread = LoopThread()
    try:
        cuts, seen = asyncio.run(main(thread))
    finally:
        thread.stop()
    where = "to the replica" if is_up else "to the caller"
    measured(
        ROW, f"cut after every {stride}. byte {where}, {cuts} times", "ends", "none wrong", seen
    )
    assert cuts > 500 / stride
    assert seen["no session"] > 0
    assert seen["unknown"] > 0
