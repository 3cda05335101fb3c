"""Handles that are bound to one replica: their options, and calls that go there or nowhere."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from serve_grpc import handle as handle_module
from serve_grpc.caller import making as making_module
from serve_grpc.errors import (
    ServeGrpcError,
)
from serve_grpc.handle import DeploymentHandle
from serve_grpc.handle_options import MAX_NAME_CHARACTERS
from serve_grpc.routing.peer import ReplicaFacts
from tests.fakes.small_fleet import SmallFleet, on_small_fleet
from tests.ray.waiting import eventually_async


class ServesRouter:
    """Stands for the one of a handle that has found its deployment."""


@pytest.fixture
def handle() -> DeploymentHandle[Any]:
    """By value; it has not looked for its deployment yet."""
    handle: DeploymentHandle[Any] = DeploymentHandle("deployment", "app", _router=ServesRouter())
    return handle.options(_by_reference=False)


# ------------------------------------------------------------ options


@pytest.mark.parametrize("wrong", [None, 7, b"id", object()], ids=type)
def test_the_id_of_a_replica_is_a_text(handle: DeploymentHandle[Any], wrong: Any) -> None:
    with pytest.raises(TypeError, match="replica_id must be a str"):
        handle.options(replica_id=wrong)


@pytest.mark.parametrize("wrong", ["", "x" * (MAX_NAME_CHARACTERS + 1), "\ud800"])
def test_a_text_that_can_be_no_id_is_refused(handle: DeploymentHandle[Any], wrong: str) -> None:
    with pytest.raises(ValueError, match="replica_id"):
        handle.options(replica_id=wrong)


def test_calls_by_reference_cannot_be_bound(handle: DeploymentHandle[Any]) -> None:
    by_reference: Any = handle.options(_by_reference=True)
    for bind in (
        lambda: by_reference.options(replica_id="a"),
        lambda: handle.options(replica_id="a", _by_reference=True),
        lambda: handle.options(replica_id="a").options(_by_reference=True),
        by_reference.pin,
    ):
        with pytest.raises(ValueError, match="_by_reference=False"):
            bind()
    assert by_reference.options(replica_id="a", _by_reference=False)._maker.bound_to == "a"


def test_copies_methods_and_pickles_stay_bound(handle: DeploymentHandle[Any]) -> None:
    bound: Any = handle.options(replica_id="a")
    twin = pickle.loads(pickle.dumps(bound))
    for copy in (bound.options(timeout_s=1), bound.work, bound.options(stream=True).work, twin):
        assert copy._maker.bound_to == "a"
        assert "replica_id='a'" in repr(copy)
    assert bound.options(replica_id="b")._maker.bound_to == "b"
    assert handle._maker.bound_to is None
    assert "replica_id" not in repr(handle)


def test_serves_router_places_no_call_of_a_bound_handle(
    handle: DeploymentHandle[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: Any = handle.options(replica_id="a")
    monkeypatch.setattr(handle_module, "router_of", lambda *_: object())
    with pytest.raises(ValueError, match="bound to replica a"):
        bound.broadcast("work")

    async def choose() -> None:
        async with bound.choose_replica():
            pass

    with pytest.raises(ValueError, match="bound to replica a"):
        asyncio.run(choose())


def test_where_no_replica_can_be_reached_binding_is_refused_at_once(
    handle: DeploymentHandle[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_module, "inside_ray_client_context", lambda: True)
    with pytest.raises(ServeGrpcError, match="Ray Client"):
        handle.options(replica_id="a").remote()

    async def pin() -> None:
        async with handle.pin():
            pass

    with pytest.raises(ServeGrpcError, match="Ray Client"):
        asyncio.run(pin())


# ------------------------------------------------------------ calls of a bound handle


def test_a_response_tells_who_has_it_and_options_take_that() -> None:
    async def main(fleet: SmallFleet) -> None:
        handle: Any = fleet.handle()
        first = handle.remote("first", 0.1)
        assert first.replica_id is None
        fleet.tell()
        assert await first == "first"
        (number,) = fleet.started("first")
        assert first.replica_id == f"replica-{number}"
        bound = handle.options(replica_id=first.replica_id)
        stream = bound.options(stream=True, method_name="stream").remote("s", 3, 0.1)
        assert [item async for item in stream] == ["s/0", "s/1", "s/2"]
        composed = bound.remote(bound.remote("inner", 0.1), 0.1)
        assert composed.replica_id is None  # its argument is not there yet
        assert await composed == "inner"
        assert stream.replica_id == composed.replica_id == first.replica_id
        assert fleet.started("s") == [number]

    on_small_fleet(main)


def test_while_a_call_that_came_back_waits_nobody_has_it() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        handle: Any = fleet.handle(idempotent=True)
        response = handle.remote("again", 5)
        await eventually_async(lambda: fleet.started("again"))
        assert response.replica_id == "replica-0"
        fleet.kill(fleet.replicas[0])
        await eventually_async(lambda: response.replica_id is None)
        fleet.fleet.replicas[fleet.replicas[0].address] = fleet.replicas[0]
        assert await response == "again"
        assert response.replica_id == "replica-0"

    on_small_fleet(main, count=1)


def test_without_an_endpoint_a_bound_call_raises_where_it_is_made() -> None:
    async def main(fleet: SmallFleet) -> None:
        early = fleet.handle(replica_id="a").remote("early", 1)
        early_pin = asyncio.ensure_future(fleet.handle().pin().__aenter__())
        await asyncio.sleep(1)
        fleet.adapter.tell([ReplicaFacts("one", "")])
        with pytest.raises(ServeGrpcError, match="has no serve_grpc endpoint"):
            fleet.handle(replica_id="a").remote("late", 1)
        for waited in (early, early_pin, fleet.handle().pin().__aenter__()):
            with pytest.raises(ServeGrpcError, match="has no serve_grpc endpoint"):
                await waited

    on_small_fleet(main)


def test_arguments_are_taken_when_a_bound_call_is_made_whoever_routes() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.adapter.has_custom_request_router = True
        fleet.tell()
        handle: Any = fleet.handle(replica_id="replica-1")
        argument = ["before"]
        await fleet.handle(replica_id="replica-1").remote("opens", 0.1)

        async def echo(value: Any, _: float) -> Any:
            return value

        fleet.replicas[1]._work = echo  # type: ignore[method-assign]
        response = handle.remote(argument, 0.1)
        argument[0] = "after"
        assert await response == ["before"]

    on_small_fleet(main)


def test_a_bound_call_takes_its_trace_along_whoever_routes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(
        making_module, "take_context_along", lambda delivery, **_: taken.append(delivery.request_id)
    )

    async def main(fleet: SmallFleet) -> None:
        fleet.adapter.has_custom_request_router = True
        fleet.tell()
        fleet.router.is_tracing = True
        bound: Any = fleet.handle(replica_id="replica-1")
        response = bound.remote("bound", 0.1)
        assert await response == "bound"
        assert taken == [response.request_id]

    on_small_fleet(main)
