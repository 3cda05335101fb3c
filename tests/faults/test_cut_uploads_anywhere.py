"""As `test_cut_anywhere`, for a call with a stream: no cut looks like its end, to either side."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.caller.inputs import Inputs
from serve_grpc.caller.item_writer import ItemWriter
from serve_grpc.caller.sources import LoopSource
from serve_grpc.mailbox import mailbox_of
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.routing.peer import PeerState
from serve_grpc.serialization import get_serializer
from tests.behaviour.serving import Chooser, Echo, connect, send, serve
from tests.fakes.deliveries import deliver
from tests.faults.calls import LoopThread
from tests.faults.tcp_proxy import TcpProxy
from tests.faults.test_cut_anywhere import SIZES
from tests.ray.waiting import eventually_async

ROW = 23
ENVELOPE = Envelope("upload", "noop", "noop", False, "", "")


class Collecting(Echo):
    """Answers a call with all items of its stream, once that has ended.

    Attributes:
        ended: Items of each stream that came to its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[list[bytes]] = []
        self._open: dict[tuple[Any, int], list[bytes]] = {}

    def on_arrival(self, stream: Any, arrival: Any) -> None:
        for request in arrival.requests:
            self._open[stream, request.id] = []
        for item in arrival.inputs:
            items = self._open[stream, item.call_id]
            if item.kind == InputKind.ITEM:
                items.append(joined(item.payload))
            else:
                assert item.kind == InputKind.END
                self.ended.append(items)
                stream.session.reply(item.call_id, Reply.RESULT, b"".join(items))
        stream.kick()


class Upload:
    """Items of the sizes of `SIZES`, and how often their generator was left."""

    def __init__(self, number: int) -> None:
        self.items = [b"%04d" % number + b"abcd"[i : i + 1] * (n - 4) for i, n in enumerate(SIZES)]
        self.left = 0

    async def steps(self) -> AsyncIterator[bytes]:
        try:
            for item in self.items:
                yield item
                await asyncio.sleep(0)
        finally:
            self.left += 1

    def delivery(self, chooser: Chooser) -> Any:
        loop = asyncio.get_running_loop()
        writer = ItemWriter(get_serializer("noop"), None, "steps")
        source = LoopSource(self.steps(), writer, loop)  # type: ignore[arg-type]
        inputs = Inputs((InputPlace(0, ""),), [source], mailbox_of(loop))
        delivery = deliver(RequestFields(ENVELOPE, b"", "an id", inputs=inputs.places), chooser)
        delivery.inputs = inputs
        inputs.belong_to(delivery)
        return delivery


async def exchange(proxy: TcpProxy, dispatcher: Collecting, number: int) -> str:
    """One session with an upload, until that has ended; how it ended."""
    chooser, upload = Chooser(), Upload(number)
    connection = connect(int(proxy.address.rpartition(":")[2]), chooser)
    connection.connect()
    ended = len(dispatcher.ended)
    try:
        known = (PeerState.READY, PeerState.LOST)
        await eventually_async(lambda: connection.peer.state in known)
        if connection.peer.state is PeerState.LOST:
            return "no session"
        call = upload.delivery(chooser).call
        send(connection, call)
        await asyncio.wait_for(call.wait_done(), 10)
        await eventually_async(lambda: upload.left == 1)
        if call.exception() is None:
            assert call.result() == b"".join(upload.items)
            assert dispatcher.ended[ended:] == [upload.items]
            return "ok"
        [(_, may_have_started)] = chooser.lost
        assert may_have_started or len(dispatcher.ended) == ended
        return "unknown" if may_have_started else "not started"
    finally:
        await connection.aclose()
        # What came to an end came as a whole, also if the answer was cut off.
        assert dispatcher.ended[ended:] in ([], [upload.items])


@pytest.mark.usefixtures("tiny_fragments")
@pytest.mark.parametrize("is_up", [True, False], ids=["to the replica", "to the caller"])
@pytest.mark.parametrize(
    "stride", [37, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
def test_an_upload_may_be_cut_at_every_byte(is_up: bool, stride: int, measured: Any) -> None:
    async def main(thread: LoopThread) -> Counter[str]:
        dispatcher = Collecting()
        server, port, _ = await serve(dispatcher=dispatcher)
        proxy = TcpProxy(thread, f"127.0.0.1:{port}")
        assert await exchange(proxy, dispatcher, 0) == "ok"
        seen: Counter[str] = Counter()
        after = 1
        while True:
            proxy.cut_after(after, is_up=is_up)
            end = await exchange(proxy, dispatcher, after)
            if proxy.cut_up_to is not None:  # the exchange is shorter than that
                break
            seen[end] += 1
            after += stride
        await eventually_async(lambda: server.sessions == 0)
        proxy.close()
        await server.stop(0)
        return seen

    thread = LoopThread()
    try:
        seen = asyncio.run(main(thread))
    finally:
        thread.stop()
    where = "to the replica" if is_up else "to the caller"
    fault = f"cut after every {stride}. byte {where} of an upload, {seen.total()} times"
    measured(ROW, fault, "ends", "none wrong", dict(seen))
    assert seen.total() > 500 / stride
    assert seen["no session"] > 0
    assert seen["unknown"] > 0
