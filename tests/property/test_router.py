"""Routers against a fleet that does everything a fleet may do: each call settles, once, truthfully.

`simulated_fleet` is the fleet; chance decides what it does and when. A run that hangs ends in
`Hung`, a call that is answered twice or with another's answer in an assertion.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.caller import pool as pool_module
from serve_grpc.caller import router as router_module
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.router import Router
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.errors import (
    DeadlineExceededError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    ServeGrpcError,
)
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.serialization import get_serializer
from tests.property.simulated_fleet import Adapter, Fleet, SimulatedReplica
from tests.property.virtual_time import run
from tests.ray.waiting import eventually_async
from tests.unit.sessions import SECRET

PICKLE = get_serializer("pickle")
STORM_S = 6.0
"""Calls are made in the first two thirds of it."""


@dataclass(frozen=True)
class Weather:
    """How hard a fleet's life is.

    Attributes:
        replicas, max_ongoing: How many there are, and how many calls each runs at once.
        callers: Routers of processes of their own.
        calls: Of each caller.
        delay_s: Longest time a message takes.
        work_s: Longest time a handler takes.
        losses: Streams that are cut, in each second.
        changes: Replicas that die, drain or join, in each second.
        idempotent, cancelled, timed: Share of the calls.
        bound: Share of the calls that may go to one replica only, which may be gone by then.
        looks_quick: Replicas expect short requests, and let callers send more than they run.
    """

    replicas: int = 3
    max_ongoing: int = 3
    callers: int = 2
    calls: int = 60
    delay_s: float = 0.02
    work_s: float = 0.3
    losses: float = 1.0
    changes: float = 0.5
    idempotent: float = 0.3
    cancelled: float = 0.15
    timed: float = 0.2
    bound: float = 0.2
    looks_quick: bool = False


class World:
    """A fleet, its callers, and what chance does to them."""

    def __init__(self, weather: Weather, rng: random.Random) -> None:
        self.weather, self.rng = weather, rng
        self.fleet = Fleet(rng, weather.delay_s)
        self.all_replicas: list[SimulatedReplica] = []
        self.calls: dict[str, Call] = {}
        self.idempotent: dict[str, bool] = {}
        self.bound_to: dict[str, str] = {}
        self.callers: list[tuple[Router, Adapter]] = []
        self.settled: Counter[str] = Counter()
        self.started_s = asyncio.get_running_loop().time()

    # ------------------------------------------------------------ the fleet

    @property
    def listed(self) -> list[SimulatedReplica]:
        """Replicas that the control plane tells of."""
        return list(self.fleet.replicas.values())

    def join(self) -> None:
        """One more replica."""
        replica = SimulatedReplica(len(self.all_replicas), self.weather.max_ongoing)
        if self.weather.looks_quick:
            replica.look_quick()
        self.all_replicas.append(replica)
        self.fleet.replicas[replica.address] = replica

    def tell(self) -> None:
        """The control plane's list reaches every caller."""
        for _, adapter in self.callers:
            adapter.tell(replica.facts for replica in self.listed)

    async def change(self) -> None:
        """One replica leaves, in one of two ways, or joins."""
        what = self.rng.choice(["die", "drain", "join"])
        if what == "join" or len(self.fleet.replicas) < 2:
            self.join()
        else:
            replica = self.fleet.replicas.pop(self.rng.choice(sorted(self.fleet.replicas)))
            replica.drain() if what == "drain" else replica.die()
        await asyncio.sleep(self.rng.uniform(0, 0.5))  # the news take a while
        self.tell()

    async def lose(self) -> None:
        """A connection breaks."""
        links = sorted(self.fleet.links, key=id)
        if links:
            self.rng.choice(links).cut()

    async def _now_and_then(self, what: Callable[[], Any], per_second: float) -> None:
        until_s = self.started_s + STORM_S
        while per_second and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(self.rng.expovariate(per_second))
            await what()

    # ------------------------------------------------------------ the callers

    def new_delivery(self, router: Router, name: str) -> Delivery:
        """A call of any kind."""
        rng, weather = self.rng, self.weather
        is_stream = rng.random() < 0.3
        method, args = "work", (name, rng.uniform(0, weather.work_s))
        if is_stream:
            items = rng.randrange(8)
            method, args = "stream", (name, items, rng.uniform(0, weather.work_s / 4))  # type: ignore[assignment]
        envelope = Envelope(method, "pickle", "pickle", is_stream, "", "")
        payload = PICKLE.dump_request(args, {})
        deadline_s = None
        if rng.random() < weather.timed:
            deadline_s = router.mailbox.loop.time() + rng.uniform(0.01, 2)
        call = Call(
            RequestFields(envelope, payload, name, credit_items=3, credit_bytes=200),
            mailbox=router.mailbox,
            response_loads=PICKLE.load_response,
        )
        self.calls[name] = call
        is_idempotent = self.idempotent[name] = rng.random() < weather.idempotent
        if rng.random() < weather.bound:
            self.bound_to[name] = rng.choice(self.all_replicas).replica_id
        return router.new_delivery(
            call,
            deadline_s=deadline_s,
            is_idempotent=is_idempotent,
            bound_to=self.bound_to.get(name),
        )

    async def make(self, router: Router, name: str) -> None:
        """One call from its beginning to its end, and what must be true of it."""
        await asyncio.sleep(self.rng.uniform(0, STORM_S * 2 / 3))
        delivery = self.new_delivery(router, name)
        call = delivery.call
        cancel_s = self.rng.uniform(0, 0.6) if self.rng.random() < self.weather.cancelled else None
        router.submit(delivery)
        if cancel_s is not None:
            router.mailbox.loop.call_later(cancel_s, call.cancel)
        items = []
        if call.fields.envelope.stream:
            while await call.wait_item():
                items.append(call.take_item())
                await asyncio.sleep(self.rng.uniform(0, 0.05))
            assert items == [f"{name}/{i}" for i in range(len(items))], items
        else:
            await call.wait_done()
        self.settled[name] += 1
        self.judge(call, name)

    def judge(self, call: Call, name: str) -> None:
        """Compare what the caller saw with what the replicas did."""
        starts = sum(replica.started[name] for replica in self.all_replicas)
        ends = sum(replica.ended[name] for replica in self.all_replicas)
        error = call.exception()
        if error is None:
            assert ends, f"{name} succeeded and never ran to its end"
            assert call.fields.envelope.stream or call.result() == name
        elif isinstance(error, ServeGrpcError):
            kinds = [ReplicaDiedError, DeadlineExceededError]
            if name in self.bound_to:
                kinds.append(ReplicaUnavailableError)
                assert error.may_have_executed or not isinstance(error, ReplicaDiedError), error
            assert isinstance(error, tuple(kinds)), error
            assert error.may_have_executed or not starts, f"{name} did start: {error!r}"
        else:
            assert isinstance(error, RequestCancelledError), error
        assert self.idempotent[name] or starts <= 1, f"{name} started {starts} times"
        if (bound_to := self.bound_to.get(name)) is not None:
            assert starts <= 1, f"{name} was bound, and started {starts} times"
            where = {r.replica_id for r in self.all_replicas if r.started[name]}
            assert where <= {bound_to}, f"{name} ran on {where}, bound to {bound_to}"
            if not isinstance(error, ReplicaUnavailableError):
                assert call.replica_id in (bound_to, None)

    # ------------------------------------------------------------ the whole

    async def live(self) -> None:
        """Everything at once; then quiet, and what must be left of it: nothing."""
        weather = self.weather
        for _ in range(weather.replicas):
            self.join()
        for _ in range(weather.callers):
            adapter = Adapter()
            as_adapter: Any = adapter
            self.callers.append((Router(as_adapter, Settings()), adapter))
        self.tell()
        storms = [
            asyncio.ensure_future(self._now_and_then(self.lose, weather.losses)),
            asyncio.ensure_future(self._now_and_then(self.change, weather.changes)),
        ]
        await asyncio.gather(
            *(
                self.make(router, f"{number}-{i}")
                for number, (router, _) in enumerate(self.callers)
                for i in range(weather.calls)
            )
        )
        for storm in storms:
            storm.cancel()
        await asyncio.sleep(5)  # cancels and late replies arrive
        self.check_the_end()

    def check_the_end(self) -> None:
        """Counts are back at zero, and limits were held."""
        assert set(self.settled.values()) == {1}
        assert len(self.settled) == self.weather.callers * self.weather.calls
        for replica in self.all_replicas:
            assert replica.running == 0
            assert replica.most_running <= self.weather.max_ongoing
            assert not replica.dispatcher._replies or all(
                not replies.running for replies in replica.dispatcher._replies.values()
            )
        for router, adapter in self.callers:
            assert router.tally.waiting == adapter.queued == 0
            assert set(adapter.on_replicas.values()) <= {0}
            assert all(delivery.done for delivery in router.line._waiting)
            assert not router.line.bound.has_waiting
            assert router.tally.replicas is not None
            assert all(peer.in_flight == 0 for peer in router.tally.replicas.peers)
        repeats = sum(
            max(0, sum(replica.started[name] for replica in self.all_replicas) - 1)
            for name in self.calls
        )
        lasted_s = asyncio.get_running_loop().time() - self.started_s
        assert repeats <= 0.2 * len(self.calls) + (10 + 10 * lasted_s) * self.weather.callers


@pytest.fixture(scope="module", autouse=True)
def _no_grpc_no_ray() -> Iterator[None]:
    no_reporter = SimpleNamespace(add=lambda _: None, remove=lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(router_module, "pool_of", lambda: ConnectionPool(Settings()))
        patch.setattr(router_module, "caller_metrics_of", lambda *_: no_reporter)
        patch.setattr(pool_module, "cluster_secrets", lambda: (SECRET,))
        patch.setattr(logging.getLogger(LOGGER_NAME), "disabled", True)
        yield


def live(weather: Weather, seed: int) -> World:
    """One life of a fleet."""

    async def main(rng: random.Random) -> World:
        world = World(weather, rng)
        with dialling_by(world.fleet.dial):
            await world.live()
        return world

    return run(main, seed)


WEATHERS = st.builds(
    Weather,
    replicas=st.integers(1, 4),
    max_ongoing=st.integers(1, 4),
    callers=st.integers(1, 3),
    calls=st.integers(1, 30),
    delay_s=st.sampled_from([0.0, 0.001, 0.05, 0.3]),
    work_s=st.sampled_from([0.0, 0.05, 0.5]),
    losses=st.sampled_from([0.0, 1.0, 10.0]),
    changes=st.sampled_from([0.0, 0.5, 3.0]),
    idempotent=st.sampled_from([0.0, 0.5, 1.0]),
    cancelled=st.sampled_from([0.0, 0.3]),
    timed=st.sampled_from([0.0, 0.3]),
    bound=st.sampled_from([0.0, 0.3, 1.0]),
    looks_quick=st.booleans(),
)


@settings(max_examples=40)
@given(weather=WEATHERS, seed=st.integers(0, 2**32))
def test_in_any_weather_each_call_settles_once_and_nothing_is_left(
    weather: Weather, seed: int
) -> None:
    live(weather, seed)


def test_calls_end_in_all_ways() -> None:
    ends: Counter[str] = Counter()
    for seed in range(4):
        world = live(Weather(), seed)
        ends.update(type(call.exception()).__name__ for call in world.calls.values())
    assert set(ends) == {
        "NoneType",
        "ReplicaDiedError",
        "ReplicaUnavailableError",
        "DeadlineExceededError",
        "RequestCancelledError",
    }


@pytest.mark.parametrize("waited_s", [0, 10])
def test_calls_that_wait_are_told_when_serve_goes_and_no_news_come(waited_s: float) -> None:
    """One slot, five calls; the replica dies, at once or after it answered, and nobody says so."""

    async def main(rng: random.Random) -> None:
        world = World(Weather(replicas=1, max_ongoing=1, timed=0, work_s=1000, bound=0.5), rng)
        world.join()
        adapter: Any = Adapter()
        router = Router(adapter, Settings())
        world.callers.append((router, adapter))
        world.tell()
        deliveries = [world.new_delivery(router, f"{i}") for i in range(5)]
        calls = [delivery.call for delivery in deliveries]
        (replica,) = world.listed
        with dialling_by(world.fleet.dial):
            for delivery in deliveries:
                router.mailbox.run(router.submit, delivery)
            await eventually_async(lambda: replica.running)
            await asyncio.sleep(waited_s)
            adapter.is_serve_gone = True
            world.fleet.replicas.clear()
            replica.die()
            await eventually_async(lambda: all(call.done for call in calls))
        assert all(isinstance(call.exception(), ServeGrpcError) for call in calls)
        assert (router.tally.waiting, adapter.queued) == (0, 0)

    run(main, 1)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_hundreds_of_lives() -> None:
    for seed in range(200):
        weather = Weather(
            replicas=1 + seed % 4,
            max_ongoing=1 + seed % 3,
            losses=seed % 7,
            changes=seed % 5 / 2,
            looks_quick=seed % 2 == 0,
        )
        live(weather, seed)
