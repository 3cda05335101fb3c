"""Handles that are bound to one replica, and `pin()`, on replicas that are simulated."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError

from serve_grpc import handle as handle_module
from serve_grpc.caller import making as making_module
from serve_grpc.errors import (
    DeadlineExceededError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    ServeGrpcError,
)
from serve_grpc.handle import DeploymentHandle
from serve_grpc.handle_options import MAX_NAME_CHARACTERS
from serve_grpc.pinning import Pin
from tests.fakes.small_fleet import SmallFleet, on_small_fleet
from tests.ray.waiting import eventually_async
from tests.unit.test_bound import limited

NOT_READY_S = 30.0


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
        fleet.adapter.tell(
            SimpleNamespace(replicas=("one",), reachable=(), serializers=None, takes_inputs=True)
        )
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


# ------------------------------------------------------------ pin


def test_all_calls_of_a_pin_go_to_one_replica() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        handle: Any = fleet.handle()
        chosen = set()
        for block in range(30):
            pin = handle.pin()
            assert pin.replica_id is None
            async with pin as pinned:
                calls = [pinned.options(timeout_s=60).remote(f"{block}/{n}", 0.01) for n in "ab"]
                calls.append(pinned.work.remote(f"{block}/c", 0.01))
                assert [await call for call in calls] == [f"{block}/{n}" for n in "abc"]
                assert {call.replica_id for call in calls} == {pin.replica_id}
                chosen.add(pin.replica_id)
        assert len(chosen) == 3  # by the usual rule: among idle ones, by chance

    on_small_fleet(main, slots=5)


def test_a_pin_waits_for_the_list_and_for_a_session() -> None:
    async def main(fleet: SmallFleet) -> None:
        pin = fleet.handle().pin()
        entering = asyncio.ensure_future(pin.__aenter__())
        await asyncio.sleep(NOT_READY_S)
        assert not entering.done()
        fleet.fleet.delay = lambda: 0.2
        told_s = asyncio.get_running_loop().time()
        fleet.tell()
        await entering
        assert asyncio.get_running_loop().time() - told_s >= 0.2
        assert (fleet.adapter.queued, fleet.router.tally.waiting) == (0, 0)
        await pin.__aexit__(None, None, None)

    on_small_fleet(main)


def test_scaled_to_zero_a_pin_wakes_the_deployment_and_a_bound_call_fails() -> None:
    async def main(fleet: SmallFleet) -> None:
        asked: list[int] = []
        fleet.adapter.ask_for_first_replica = lambda: asked.append(fleet.adapter.queued)
        there = dict(fleet.fleet.replicas)
        fleet.fleet.replicas.clear()
        fleet.tell()
        bound: Any = fleet.handle(replica_id="replica-0")
        with pytest.raises(ReplicaUnavailableError):
            await bound.remote("bound", 1)
        assert asked == []
        entering = asyncio.ensure_future(fleet.handle().pin().__aenter__())
        await asyncio.sleep(1)
        assert asked == [1]  # the autoscaler goes by the number of those that wait
        fleet.fleet.replicas.update(there)
        fleet.tell()
        pinned: Any = await entering
        assert await pinned.remote("pinned", 0.1) == "pinned"

    on_small_fleet(main)


def test_a_pin_is_no_call() -> None:
    async def main(fleet: SmallFleet) -> None:
        counted: list[str] = []
        fleet.adapter.on_call = lambda route, _: counted.append(route)
        early = asyncio.ensure_future(fleet.handle().pin().__aenter__())
        await asyncio.sleep(1)
        fleet.tell()
        await early
        async with fleet.handle().pin() as pinned:
            assert (counted, fleet.router.tally.outcomes()) == ([], {})
            assert await pinned.remote("a call", 0.1) == "a call"
        assert (len(counted), fleet.router.tally.outcomes()) == (1, {"ok": 1})

    on_small_fleet(main)


def test_a_pin_stands_in_line_and_is_refused_as_a_call() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        handle: Any = fleet.handle()
        held = handle.remote("held", 5)
        await eventually_async(lambda: fleet.started("held"))
        entering = asyncio.ensure_future(handle.pin().__aenter__())
        with pytest.raises(DeadlineExceededError) as raised:
            await handle.options(timeout_s=1).pin().__aenter__()
        assert not raised.value.may_have_executed
        given_up = asyncio.ensure_future(handle.pin().__aenter__())
        await asyncio.sleep(0.1)
        given_up.cancel()
        await asyncio.wait([given_up])
        await asyncio.sleep(0.1)
        assert fleet.adapter.queued == 1
        fleet.adapter.refusal = limited(1, fleet.adapter)
        with pytest.raises(BackPressureError):
            await handle.pin().__aenter__()
        assert not entering.done()
        assert await held == "held"
        await entering

    on_small_fleet(main, count=1)


def test_after_its_block_a_pin_makes_no_calls_and_those_on_their_way_go_on() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        handle: Any = fleet.handle()
        pin = handle.pin()
        async with pin as pinned:
            method, copy = pinned.work, pinned.options(timeout_s=9)
            sent = pinned.remote("sent", 1)
            inside = pickle.loads(pickle.dumps(pinned))
            async with pinned.pin() as again:  # of the same replica, for a block of its own
                nested = again.remote("nested", 0.1)
            with pytest.raises(RuntimeError, match="is over"):
                again.remote("late", 1)
            on_its_own = pinned.options(replica_id=pin.replica_id)
        for ended in (pinned, method, copy, pinned.options(stream=True)):
            with pytest.raises(RuntimeError, match=f"the pin to replica {pin.replica_id} is over"):
                ended.remote("late", 1)
        with pytest.raises(RuntimeError, match="is over"):
            await pinned.pin().__aenter__()
        with pytest.raises(RuntimeError, match="entered once"):
            await pin.__aenter__()
        assert (await sent, await nested) == ("sent", "nested")
        # Neither of these knows of the block.
        assert inside._maker.bound_to == pin.replica_id
        assert await on_its_own.remote("free", 0.1) == "free"
        assert await handle.remote("any", 0.1) == "any"

    on_small_fleet(main, slots=5)


def test_a_pin_ends_with_its_block_whatever_happens_there() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        with contextlib.suppress(KeyError):
            async with fleet.handle().pin() as pinned:
                raise KeyError("of the block")
        with pytest.raises(RuntimeError, match="is over"):
            pinned.remote("late", 1)

    on_small_fleet(main)


@pytest.mark.parametrize("how", ["killed", "drained", "unlisted"])
def test_a_pin_whose_replica_goes_moves_nowhere(how: str) -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        async with fleet.handle(idempotent=True).pin() as pinned:
            sent = pinned.remote("sent", 3)
            await eventually_async(lambda: fleet.started("sent"))
            (number,) = fleet.started("sent")
            waiting, replica = pinned.remote("waiting", 1), fleet.replicas[number]
            if how == "killed":
                fleet.kill(replica)
                with pytest.raises(ReplicaDiedError) as died:
                    await sent
                assert died.value.may_have_executed
            else:
                if how == "drained":
                    replica.drain()
                else:
                    fleet.unlist(replica)
                assert await sent == "sent"
            for response in (waiting, pinned.remote("late", 1)):
                with pytest.raises(ReplicaUnavailableError) as raised:
                    await response
                assert raised.value.replica_id == f"replica-{number}"
                assert not raised.value.may_have_executed
                assert response.replica_id is None
        assert fleet.started("waiting") == fleet.started("late") == []
        async with fleet.handle().pin() as pinned:  # another one takes over only here
            assert await pinned.remote("new", 0.1) == "new"
        assert fleet.started("new") != [number]

    on_small_fleet(main, count=2)


def test_a_request_router_of_the_deployments_own_chooses_for_a_pin() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.adapter.has_custom_request_router = True
        fleet.tell()
        handle: Any = fleet.handle()
        entered: list[str] = []

        @contextlib.asynccontextmanager
        async def choose_replica() -> AsyncIterator[Any]:
            entered.append("slot")
            yield SimpleNamespace(replica_id="replica-2")
            entered.remove("slot")

        handle.choose_replica = choose_replica
        async with Pin(handle) as pinned:
            assert entered == []  # the slot was for the choice only
            assert await pinned.remote("placed", 0.1) == "placed"
        assert fleet.started("placed") == [2]

        @contextlib.asynccontextmanager
        async def never() -> AsyncIterator[Any]:
            await asyncio.sleep(1000)
            yield

        slow: Any = fleet.handle(timeout_s=1)
        slow.choose_replica = never
        with pytest.raises(DeadlineExceededError):
            await Pin(slow).__aenter__()

    on_small_fleet(main)
