"""The whole way of calls in one process, for the budgets of the caller's and the replica's side.

A call is made as a handle makes it, let in, sent, admitted, run, answered and consumed. Real is
everything but Serve, whose parts are those of the simulated fleet, and gRPC, for which a loopback
link stands. Each budget counts the code of one side only, so neither the event loop's own steps nor
the stand-ins are in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from serve_grpc._serve.replicas import UserMethod
from serve_grpc.caller.call import Call
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.inputs import Inputs
from serve_grpc.caller.item_writer import ItemWriter
from serve_grpc.caller.making import CallMaker
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.relays import Relay, ResponseItems
from serve_grpc.caller.router import Router
from serve_grpc.caller.sources import LoopSource, Source
from serve_grpc.config import Settings
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.request_stream import RequestStream
from serve_grpc.serialization import get_serializer
from tests.property.simulated_fleet import Adapter, Fleet, SimulatedReplica
from tests.unit.sessions import SECRET

__all__ = [
    "CALLER_SIDE",
    "CALLS",
    "ITEMS",
    "REPLICA_SIDE",
    "calls_made",
    "items_relayed",
    "items_sent",
    "items_streamed",
]

IN_FLIGHT, ROUNDS = 32, 1
CALLS = IN_FLIGHT * ROUNDS
ITEMS = 64
CALLER_SIDE = ("caller/", "routing/")
REPLICA_SIDE = ("replica/", "streams/")
PAYLOAD = "x" * 100


class _Replica(SimulatedReplica):
    """Its handlers do nothing but answer."""

    def method(self, name: str) -> UserMethod:
        function = {"echo": self._echo, "count": self._count, "take": self._take}[name]
        return UserMethod(name, function, is_coroutine=name != "count", in_thread=False)

    async def _echo(self, text: str) -> str:
        return text

    async def _count(self, items: int) -> AsyncIterator[str]:
        for _ in range(items):
            yield PAYLOAD

    async def _take(self, stream: RequestStream[str]) -> int:
        return len([item async for item in stream])


class _Way:
    """A caller whose one replica has answered a call already."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._router = self._loop.run_until_complete(self._open())

    async def _open(self) -> Router:
        self._fleet = fleet = Fleet(random.Random(1), 0.0)  # it holds its replicas' tasks
        replica = _Replica(1, max_ongoing_requests=IN_FLIGHT)
        fleet.replicas[replica.address] = replica
        adapter: Any = Adapter()
        metrics = SimpleNamespace(add=lambda _: None, remove=lambda _: None)
        with (
            dialling_by(fleet.dial),
            mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)),
            mock.patch("serve_grpc.caller.router.pool_of", side_effect=_new_pool),
            mock.patch("serve_grpc.caller.router.caller_metrics_of", return_value=metrics),
        ):
            self._router = router = Router(adapter, Settings())
            await asyncio.sleep(0)  # it starts in the loop's next turn
            adapter.tell([replica.facts])
            assert await self._call(_maker("echo"), PAYLOAD) == PAYLOAD
        return router

    def _call(self, maker: CallMaker, argument: object, source: Source | None = None) -> Call:
        router = self._router
        places = (InputPlace(0, ""),)
        inputs = None if source is None else Inputs(places, [source], router.mailbox)
        delivery = maker.new_delivery(router, None, inputs)
        assert maker.serialize(delivery, (argument,), {}, self._router.memory)
        router.mailbox.run(router.submit, delivery)
        return delivery.call

    def make_calls(self) -> None:
        maker = _maker("echo")

        async def one() -> None:
            assert await self._call(maker, PAYLOAD) == PAYLOAD

        async def all_of_them() -> None:
            for _ in range(ROUNDS):
                await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))

        with self._closing():
            self._loop.run_until_complete(all_of_them())

    def stream_items(self) -> None:
        async def take_all() -> int:
            call, items = self._call(_maker("count", stream=True), ITEMS), 0
            with contextlib.suppress(StopAsyncIteration):
                while await call.fetch_item() == PAYLOAD:
                    items += 1
            return items

        with self._closing():
            assert self._loop.run_until_complete(take_all()) == ITEMS

    def send_items(self) -> None:
        async def items() -> AsyncIterator[str]:
            for _ in range(ITEMS):
                yield PAYLOAD

        async def upload() -> object:
            generator: Any = items()
            source = LoopSource(generator, _writer(), self._loop)
            return await self._call(_maker("take"), None, source)

        with self._closing():
            assert self._loop.run_until_complete(upload()) == ITEMS

    def relay_items(self) -> None:
        async def relay() -> object:
            upstream = self._call(_maker("count", stream=True), ITEMS)
            source = Relay(ResponseItems(upstream, upstream.give_up), _writer())
            return await self._call(_maker("take"), None, source)

        with self._closing():
            assert self._loop.run_until_complete(relay()) == ITEMS

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._loop.run_until_complete(self._close())
            self._loop.close()

    async def _close(self) -> None:
        self._router.close("measured")
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _new_pool() -> ConnectionPool:
    return ConnectionPool(Settings())


def _maker(method: str, *, stream: bool = False) -> CallMaker:
    options = SimpleNamespace(
        method_name=method,
        request_serialization="cloudpickle",
        response_serialization="cloudpickle",
        stream=stream,
        multiplexed_model_id="",
        session_id="",
    )
    return CallMaker("deployment", "app", options, is_idempotent=False)


def _writer() -> ItemWriter:
    return ItemWriter(get_serializer("cloudpickle"), None, "items")


def calls_made() -> Callable[[], object]:
    """Unary calls, from their arguments to their results."""
    return _Way().make_calls


def items_streamed() -> Callable[[], object]:
    """One stream, from the generator to the consumer."""
    return _Way().stream_items


def items_sent() -> Callable[[], object]:
    """A stream that is an argument, from the caller's generator to the handler."""
    return _Way().send_items


def items_relayed() -> Callable[[], object]:
    """A stream that one call returns and another one has as an argument."""
    return _Way().relay_items
