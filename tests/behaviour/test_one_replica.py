"""Handles that are bound to one of two replicas, over real sockets: death, drain, broken links."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.caller import pool as pool_module
from serve_grpc.caller import router as router_module
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.router import Router
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.config import Settings
from serve_grpc.errors import ReplicaDiedError, ReplicaUnavailableError
from serve_grpc.handle import DeploymentHandle
from serve_grpc.routing.peer import ReplicaFacts
from tests.behaviour.serving import SECRET, Echo, serve
from tests.property.simulated_fleet import Adapter
from tests.ray.waiting import eventually_async

ONE, TWO = "one", "two"
pools: list[ConnectionPool] = []


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_pool() -> ConnectionPool:
        pools.append(ConnectionPool(Settings()))
        return pools[-1]

    no_reporter = SimpleNamespace(add=lambda _: None, remove=lambda _: None)
    monkeypatch.setattr(router_module, "pool_of", new_pool)
    monkeypatch.setattr(router_module, "caller_metrics_of", lambda *_: no_reporter)
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: (SECRET,))


class Town:
    """Two replicas that echo, and a handle that calls them."""

    def __init__(self) -> None:
        self.servers: dict[str, ReplicaServer] = {}
        self.echoes: dict[str, Echo] = {}
        self.facts: dict[str, ReplicaFacts] = {}
        self.adapter: Any = Adapter()
        self.router = Router(self.adapter, Settings())
        handle: DeploymentHandle[Any] = DeploymentHandle("deployment", "app", _router=object())
        handle._data_router = self.router
        self.handle: Any = handle.options(
            _by_reference=False,
            method_name="echo",
            request_serialization="noop",
            response_serialization="noop",
        )

    async def open(self, slots: int) -> None:
        for name in (ONE, TWO):
            self.servers[name], port, self.echoes[name] = await serve(replica_id=name)
            self.facts[name] = ReplicaFacts(name, f"127.0.0.1:{port}", max_ongoing_requests=slots)
        self.tell(ONE, TWO)

    def tell(self, *names: str) -> None:
        """What Serve lists."""
        self.adapter.tell(self.facts[name] for name in names)

    async def hold(self, handle: Any, name: str) -> Any:
        """A call that has begun there, and goes on until `let_go`."""
        before = len(self.echoes[name].held)
        response = handle.options(method_name="hold").remote(b"held")
        await eventually_async(lambda: len(self.echoes[name].held) > before)
        return response

    def let_go(self, name: str) -> None:
        """Answer what is held there."""
        for stream, call_id in self.echoes[name].held:
            stream.session.reply(call_id, Reply.RESULT, b"let go")
            stream.kick()
        self.echoes[name].held.clear()


@contextlib.asynccontextmanager
async def town(slots: int = 100) -> AsyncIterator[Town]:
    there = Town()
    await asyncio.sleep(0)
    await there.open(slots)
    try:
        yield there
    finally:
        there.router.close("the test is over")
        await pools.pop().aclose()
        for server in there.servers.values():
            await server.stop(0)


def test_all_calls_go_to_the_replica_of_the_first() -> None:
    async def main() -> None:
        async with town() as there:
            for name in (ONE, TWO):
                bound = there.handle.options(replica_id=name)
                responses = [bound.remote(b"%d" % number) for number in range(50)]
                assert [await response for response in responses][:2] == [b"0", b"1"]
                assert {response.replica_id for response in responses} == {name}
            async with there.handle.pin() as pinned:
                responses = [pinned.remote(b"x") for _ in range(50)]
                await asyncio.gather(*(response._call.wait_done() for response in responses))
                assert len({response.replica_id for response in responses}) == 1

    asyncio.run(main())


def test_the_death_of_the_replica_ends_what_was_sent_and_what_waits() -> None:
    async def main() -> None:
        async with town(slots=1) as there, there.handle.options(idempotent=True).pin() as pinned:
            first = pinned.remote(b"where")
            await first
            where = first.replica_id
            sent = await there.hold(pinned, where)
            waiting = pinned.remote(b"waiting")
            await there.servers[where].stop(0)
            lost_s = time.monotonic()
            with pytest.raises(ReplicaDiedError) as died:
                await sent
            assert died.value.may_have_executed
            for response in (waiting, pinned.remote(b"late")):
                with pytest.raises(ReplicaUnavailableError, match="cannot be reached") as raised:
                    await response
                assert (raised.value.replica_id, raised.value.may_have_executed) == (where, False)
            assert time.monotonic() - lost_s < 5
            other = ({ONE, TWO} - {where}).pop()
            there.tell(other)
            with pytest.raises(ReplicaUnavailableError, match="not among the running"):
                await pinned.remote(b"later")
            assert there.echoes[other].held == []

    asyncio.run(main())


def test_a_drain_ends_the_pin_and_what_was_read_is_finished() -> None:
    async def main() -> None:
        async with town() as there, there.handle.pin() as pinned:
            first = pinned.remote(b"where")
            await first
            where = first.replica_id
            sent = await there.hold(pinned, where)
            await there.servers[where].drain()
            connection: Any = there.router.line.replicas.connection_to(where)
            await eventually_async(lambda: connection.peer.state.value == "gone")
            with pytest.raises(ReplicaUnavailableError, match="shuts down"):
                await pinned.remote(b"late")
            there.let_go(where)
            assert await sent == b"let go"

    asyncio.run(main())


def test_a_call_that_a_draining_replica_did_not_read_ends_unavailable() -> None:
    async def main() -> None:
        async with town() as there:
            bound = there.handle.options(replica_id=ONE, idempotent=True)
            sent = await there.hold(bound, ONE)
            # On its way when the replica says which request was the last that it read.
            ((stream, _),) = there.echoes[ONE].held
            stream.session.drain()
            crossing = bound.remote(b"crossing")
            assert crossing.replica_id == ONE
            stream.kick()
            with pytest.raises(ReplicaUnavailableError) as raised:
                await crossing
            assert not raised.value.may_have_executed
            assert crossing.replica_id is None
            there.let_go(ONE)
            assert await sent == b"let go"

    asyncio.run(main())


def test_a_broken_connection_ends_what_was_sent_and_the_rest_goes_on_there() -> None:
    async def main() -> None:
        async with town(slots=1) as there:
            bound = there.handle.options(replica_id=ONE)
            sent, waiting = await there.hold(bound, ONE), bound.remote(b"waiting")
            connection: Any = there.router.line.replicas.connection_to(ONE)
            connection._session.cancel("cut")
            with pytest.raises(ReplicaDiedError):
                await sent
            assert await waiting == b"waiting"
            assert waiting.replica_id == ONE

    asyncio.run(main())
