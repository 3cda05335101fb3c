"""Routers that choose from subsets, against a fleet that does everything a fleet may do.

As in test_router.py: each call settles, once, truthfully. Here replicas come into subsets and leave
them all the time, and calls are bound to replicas outside.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc.caller import held as held_module
from serve_grpc.caller import replicas as replicas_module
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.router import Router
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import Envelope
from tests.fakes.small_fleet import SmallFleet, on_small_fleet
from tests.property.simulated_fleet import Adapter
from tests.property.test_router import PICKLE, Weather, World, _no_grpc_no_ray, live
from tests.property.virtual_time import run
from tests.ray.waiting import eventually_async

__all__ = ["_no_grpc_no_ray"]  # the fixture, for this module too

ENVELOPE = Envelope("work", "pickle", "pickle", False, "", "")
WEATHERS = st.builds(
    Weather,
    replicas=st.integers(3, 12),
    max_ongoing=st.integers(1, 3),
    callers=st.integers(1, 3),
    calls=st.integers(1, 40),
    delay_s=st.sampled_from([0.0, 0.001, 0.05]),
    work_s=st.sampled_from([0.0, 0.05, 0.5]),
    losses=st.sampled_from([0.0, 1.0, 10.0]),
    changes=st.sampled_from([0.0, 0.5, 3.0]),
    bound=st.sampled_from([0.0, 0.3, 1.0]),
    looks_quick=st.booleans(),
)


@pytest.fixture(scope="module", autouse=True)
def _small_subsets_that_shrink_soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas_module, "settings", Settings(subset_size=2))
        patch.setattr(held_module, "LOOK_S", 0.3)
        yield


@settings(max_examples=20)
@given(weather=WEATHERS, seed=st.integers(0, 2**32))
def test_in_any_weather_each_call_settles_once_and_nothing_is_left(
    weather: Weather, seed: int
) -> None:
    live(weather, seed)


def test_subsets_are_in_effect() -> None:
    world = live(Weather(replicas=12, changes=0, losses=0, bound=0, calls=4), 1)
    for router, _ in world.callers:
        assert len(router.line.replicas) == 12
        assert len(router.line.replicas.held) < 12


@pytest.mark.parametrize("at_once", [True, False])
def test_a_burst_of_long_calls_fills_every_slot_of_the_fleet(at_once: bool) -> None:
    """Two of twelve replicas are in the subset; the calls are as many as the fleet has slots."""

    async def main(rng: random.Random) -> None:
        weather = Weather(replicas=12, max_ongoing=3, timed=0, bound=0, work_s=0)
        world = World(weather, rng)
        for _ in range(weather.replicas):
            world.join()
        adapter: Any = Adapter()
        router = Router(adapter, Settings())
        world.callers.append((router, adapter))
        world.tell()
        with dialling_by(world.fleet.dial):
            slots = weather.replicas * weather.max_ongoing
            began_s = router.mailbox.loop.time()
            for number in range(slots):
                # For as long as the test lasts.
                delivery = world.new_delivery(router, f"{number}")
                delivery.call.fields.envelope = ENVELOPE
                delivery.call.fields.payload = PICKLE.dump_request((f"{number}", 1e6), {})
                router.mailbox.run(router.submit, delivery)
                if not at_once:
                    await eventually_async(lambda: adapter.queued == 0)
            running = world.all_replicas
            await eventually_async(lambda: sum(one.running for one in running) == slots)
            # A few dials one after the other, each two or three messages on their way.
            assert router.mailbox.loop.time() - began_s < (1 if at_once else 5)
            router.close("enough")

    run(main, 5)


def test_calls_wait_for_a_replica_that_takes_long_to_reach_no_longer_than_a_second() -> None:
    """Of two that wait, one finds room elsewhere; the other's next hope is the replica itself."""

    async def main(fleet: SmallFleet) -> None:
        dialled: list[str] = []

        async def dial(address: str, settings: Settings) -> Any:
            dialled.append(address)
            if len(dialled) == 3:  # the first one beside the subset
                await asyncio.Event().wait()
            return await fleet.fleet.dial(address, settings)

        with dialling_by(dial):
            fleet.tell()
            for name in ("one", "two", "three"):
                fleet.call(name, work_s=100)
            fleet.call("short", work_s=0.5)
            await eventually_async(lambda: sum(r.running for r in fleet.replicas) == 4)
            for name in ("four", "five"):
                fleet.call(name, work_s=100)
            await asyncio.sleep(1.5)
            assert fleet.started("four")
            assert fleet.started("five")

    on_small_fleet(main, count=6, slots=2)
