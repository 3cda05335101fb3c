"""`pin()`: which replica it takes, what it waits for, and how it ends; on simulated replicas."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError

from serve_grpc.errors import (
    DeadlineExceededError,
    ReplicaDiedError,
    ReplicaUnavailableError,
)
from serve_grpc.pinning import Pin
from tests.fakes.small_fleet import SmallFleet, on_small_fleet
from tests.ray.waiting import eventually_async
from tests.unit.test_bound import limited

NOT_READY_S = 30.0


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
