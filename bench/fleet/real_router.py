"""What a list of replicas costs the loop of Serve's router, by itself and with ours on it.

Serve's router, its long-poll callback and the lists are the real ones; Ray's table of actors is a
stand-in that counts, and whose look-ups cost nothing unless they are told to. Ours has a real
router, and calls go over real sessions through memory. Nobody else is on the loop but the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import pickle
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from bench.stand_ins.loopback import SECRET, Caller, new_session
from bench.stand_ins.real_router import (
    RealRouter,
    adapter_of,
    as_pickle,
    as_sent,
    real_router,
)
from bench.stand_ins.serve import new_replica_adapter, running
from serve_grpc._serve.replica_facts import Endpoint
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.router import Router
from serve_grpc.carriers.link import Dial, Link
from serve_grpc.carriers.loopback import loopback_dial
from serve_grpc.config import Settings
from serve_grpc.replica.dispatcher import ReplicaDispatcher

__all__ = ["Arrival", "Calls", "Changes", "measure_arrival", "measure_calls", "measure_changes"]

SLOTS = 200
CALLS_TO_WARM_UP = 200
SETTLED_TURNS = 50


@dataclass(frozen=True)
class Arrival:
    """The first list of replicas.

    Attributes:
        look_ups: Actors that were looked up because of it.
        longest_stall_ms: The longest that the loop did nothing else.
        done_ms: Until all replicas were known, and nothing was left to do.
        taken_ms: How long a call by reference then holds the loop up, if Serve's request router
            takes the list only when it needs it.
    """

    look_ups: int
    longest_stall_ms: float
    done_ms: float
    taken_ms: float


@dataclass(frozen=True)
class Changes:
    """Lists that differ from the one before in one replica.

    Attributes:
        less_ms, more_ms: The callback of one with a replica less, or more; median.
        longest_ms: The longest of all.
        look_ups: Actors that were looked up because of them.
    """

    less_ms: float
    more_ms: float
    longest_ms: float
    look_ups: int


@dataclass(frozen=True)
class Calls:
    """By-value calls, one after the other.

    Attributes:
        p50_ms, p99_ms, longest_ms: CPU time of the loop's thread from a call to its answer, with
            all else that it did meanwhile. Machines are too noisy to tell a millisecond of the time
            of day.
    """

    p50_ms: float
    p99_ms: float
    longest_ms: float


def replicas_of(count: int, first: int = 0) -> list[Any]:
    """What the controller says of replicas, each of which has an address of its own."""
    infos = running(first + count, max_ongoing_requests=SLOTS)[first:]
    return [
        dataclasses.replace(
            info,
            replica_metadata=Endpoint(f"{info.replica_id.unique_id}:1", "ab" * 16).as_metadata(),
        )
        for info in infos
    ]


class _Stalls:
    """Watches the loop that it is made on: how long it stays away."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.turns = 0
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        before_s = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now_s = time.perf_counter()
            self.longest_s = max(self.longest_s, now_s - before_s)
            before_s = now_s
            self.turns += 1

    async def begin(self) -> None:
        """Forget what was so far."""
        await asyncio.sleep(0.01)
        self.longest_s = 0.0

    def end(self) -> None:
        self._task.cancel()


@contextlib.asynccontextmanager
async def _routers(*, is_ours: bool, cost_s: float) -> AsyncIterator[tuple[RealRouter, Any]]:
    """Serve's router, configured, and ours on it, or None."""

    async def echo(value: Any) -> Any:
        return value

    replica = new_replica_adapter(echo, max_ongoing_requests=SLOTS)
    dispatcher = ReplicaDispatcher(replica, Settings())

    dials: dict[str, Dial] = {}

    async def dial(address: str, settings: Settings) -> Link:
        replica_id = address.partition(":")[0]
        to_it = dials.setdefault(
            replica_id, loopback_dial(lambda link: new_session(link, dispatcher, replica_id).run())
        )
        return await to_it(address, settings)

    async with real_router(cost_s) as router:
        with (
            mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)),
            dialling_by(dial),
        ):
            ours = Router(adapter_of(router), Settings()) if is_ours else None
            await asyncio.sleep(0)  # it starts in the loop's next turn
            router.configure()
            try:
                yield router, ours
            finally:
                if ours is not None:
                    ours.close("measured")
                replica._access_log.close()


async def _settle(router: RealRouter, ours: Router | None, infos: Sequence[Any]) -> None:
    """Until everything that the list has set off is over."""
    if ours is None:
        while len(router.actors.asked) < len(infos):  # noqa: ASYNC110
            await asyncio.sleep(0)
    else:
        while not ours.feed.is_ready:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


# ---------------------------------------------------------------- the first list


async def measure_arrival(count: int, *, is_ours: bool, cost_s: float = 0.0) -> Arrival:
    """A first list of `count` replicas reaches the router; a look-up takes `cost_s`."""
    infos = replicas_of(count)
    async with _routers(is_ours=is_ours, cost_s=cost_s) as (router, ours):
        target = as_sent(infos)
        gc.collect()
        stalls = _Stalls()
        await stalls.begin()
        begin_s = time.perf_counter()
        asyncio.get_running_loop().call_soon(router.give, target)
        await _settle(router, ours, infos)
        done_s = time.perf_counter() - begin_s
        await asyncio.sleep(0)
        stalls.end()
        looked_up, begin_s = len(router.actors.looked_up), time.perf_counter()
        if ours is not None:
            router.take()
        taken_s = time.perf_counter() - begin_s
        return Arrival(looked_up, stalls.longest_s * 1e3, done_s * 1e3, taken_s * 1e3)


# ---------------------------------------------------------------- one replica less or more


async def measure_changes(count: int, rounds: int, *, is_ours: bool) -> Changes:
    """Of `count` replicas one goes, and another one comes, so many times."""
    infos, others = replicas_of(count), replicas_of(rounds, count)
    async with _routers(is_ours=is_ours, cost_s=0.0) as (router, ours):
        router.give(as_sent(infos))
        await _settle(router, ours, infos)
        before = len(router.actors.looked_up)
        times: dict[int, list[float]] = {-1: [], 1: []}
        for number in range(rounds):
            less = [*infos[:number], *infos[number + 1 :]]
            for more, listed in ((-1, less), (1, [*less, others[number]])):
                target = as_sent(listed)
                begin_s = time.perf_counter()
                router.give(target)
                times[more].append((time.perf_counter() - begin_s) * 1e3)
                for _ in range(SETTLED_TURNS):
                    await asyncio.sleep(0)
        return Changes(
            statistics.median(times[-1]),
            statistics.median(times[1]),
            max(times[-1] + times[1]),
            len(router.actors.looked_up) - before,
        )


# ---------------------------------------------------------------- calls while replicas change


async def measure_calls(count: int, lists: int, calls: int, *, is_changing: bool) -> Calls:
    """Calls to one replica of `count`, which stays, while the others are replaced one by one.

    What was there before is no business of the garbage collector meanwhile: a full collection would
    be the longest stall by far, whoever caused it.

    Args:
        count: Replicas.
        lists: How many lists there are, each with another replica in the place of one.
        calls: How many calls are made for each list, one after the other.
        is_changing: Whether the lists are given to the router.
    """
    infos, others = replicas_of(count), replicas_of(lists, count)
    pickles = []
    target = as_sent(infos)
    for number in range(lists):
        place = 1 + number % (count - 1)
        infos = [*infos[:place], others[number], *infos[place + 1 :]]
        pickles.append(as_pickle(infos))
    async with _routers(is_ours=True, cost_s=0.0) as (router, ours):
        assert ours is not None
        router.give(target)
        await _settle(router, ours, infos)
        caller = Caller(ours, "cloudpickle", bound_to=infos[0].replica_id.unique_id)
        for _ in range(CALLS_TO_WARM_UP):
            await caller.call("warm")
        gc.collect()
        gc.freeze()
        times: list[float] = []
        for pickled in pickles:
            target = pickle.loads(pickled)  # Ray does it in a thread of its own
            for number in range(calls):
                begin_s = time.thread_time()
                if number == 0 and is_changing:
                    router.give(target)
                await caller.call("x")
                times.append((time.thread_time() - begin_s) * 1e3)
        gc.unfreeze()
    times.sort()
    return Calls(statistics.median(times), times[int(len(times) * 0.99)], times[-1])
