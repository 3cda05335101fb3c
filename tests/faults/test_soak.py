"""Many calls, streams both ways, reconnects and cancels: what both sides hold afterwards is what
they held.

A short form runs with every change; `make soak` runs the long one. Both sides are warmed up first:
allocators, caches and thread pools grow once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray

import serve_grpc
from serve_grpc._serve.cluster import cluster_secrets
from serve_grpc.caller.connection import Connection
from serve_grpc.config import settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from tests.behaviour.serving import Chooser
from tests.faults.calls import LoopThread
from tests.faults.fleet import watched_handle
from tests.faults.memory import MIB
from tests.faults.tcp_proxy import TcpProxy
from tests.ray.apps.watched import resources
from tests.ray.waiting import eventually, eventually_async

ROW = 21
MAX_RSS_MIB = 10
ITEMS = 20
"""Of a stream that goes to its end."""
FLAT = ("fds", "threads", "tasks", "channels", "sessions", "calls", "streams", "refs")


@dataclass(frozen=True)
class Load:
    """How many of each."""

    calls: int
    reconnects: int
    cancels: int
    sessions: int
    uploads: int
    echoes: int

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls, {self.uploads:,} uploads, {self.echoes:,} echoes of streams, "
            f"{self.reconnects:,} reconnects, {self.cancels:,} cancels"
        )


class Soak:
    """Args: `handle` to a replica of `Watched`, and a loop for the callers."""

    def __init__(self, handle: Any, callers: LoopThread) -> None:
        self.handle, self.callers = handle, callers
        (self.replica,) = serve_grpc.handle_statistics(handle).replicas

    def run(self, load: Load) -> None:
        """Everything, one after the other; one that fails fails the test."""
        works = self.calls, self.uploads, self.echoes, self.cancels, self.reconnects
        for work in works:
            self.callers.start(work(load)).result(600)
        eventually(lambda: serve_grpc.handle_statistics(self.handle).in_flight == 0)

    def resources(self) -> dict[str, dict[str, int]]:
        """Of both sides."""
        return {
            "replica": self.handle.resources.remote().result(timeout_s=60),
            "caller": resources(),
        }

    async def _repeat(
        self, times: int, at_once: int, one: Callable[[int], Awaitable[None]]
    ) -> None:
        numbers = iter(range(times))

        async def go_on() -> None:
            for number in numbers:
                await one(number)

        await asyncio.gather(*(go_on() for _ in range(at_once)))

    async def calls(self, load: Load) -> None:
        """Unary calls; one in a hundred is a stream, one in five hundred lends an ObjectRef."""
        echo, stream = self.handle.echo, self.handle.options(stream=True).breaking_items

        async def one(number: int) -> None:
            if number % 100 == 0:
                items = [item async for item in stream.remote(5, 1)]
                assert items == [0, 1, 2, 3, 4, b"x"]
            elif number % 500 == 250:
                (lent,) = await echo.remote([ray.put(number)])
                assert await lent == number
            else:
                assert await echo.remote(number) == number

        await self._repeat(load.calls, 200, one)

    async def uploads(self, load: Load) -> None:
        """Of generators of both kinds; of ten one is left by its handler, and one by its caller."""
        count = self.handle.count

        async def one(number: int) -> None:
            if number % 10 == 8:
                assert await count.remote(on_loop(10**9), 3) == 3
            elif number % 10 == 9:
                response = count.remote(on_loop(10**9), 0)
                await asyncio.sleep(0 if number % 20 == 9 else 0.005)
                response.cancel()
            else:
                items = in_thread(ITEMS) if number % 10 == 0 else on_loop(ITEMS)
                assert await count.remote(items, 0) == ITEMS

        await self._repeat(load.uploads, 50, one)

    async def echoes(self, load: Load) -> None:
        """Streams both ways at a time; every other one goes through the replica twice, relayed."""
        echo = self.handle.options(stream=True).echo_items

        async def one(number: int) -> None:
            items = echo.remote(on_loop(ITEMS))
            if number % 2:
                items = echo.remote(items)
            if number % 10 == 9:
                await anext(items)
                return  # it is left
            assert [item async for item in items] == list(range(ITEMS))

        await self._repeat(load.echoes, 50, one)

    async def cancels(self, load: Load) -> None:
        """Of calls that wait to be written, calls that run, some of them with an ObjectRef, and
        streams that are left."""
        slow, endless = self.handle.wait_with, self.handle.options(stream=True).fast

        async def one(number: int) -> None:
            if number % 10 == 9:
                stream = endless.remote(f"left{number % 100}", 100)
                await stream.__anext__()
                return
            response = slow.remote([ray.put(number)] if number % 50 == 5 else None, 60.0)
            await asyncio.sleep(0 if number % 2 else 0.005)
            response.cancel()

        await self._repeat(load.cancels, 100, one)

    async def reconnects(self, load: Load) -> None:
        """Sessions that are reset all at once, again and again."""
        secrets = ClusterSecrets(cluster_secrets)
        chooser = Chooser()
        loop = asyncio.get_running_loop()
        proxy, thread = await loop.run_in_executor(None, self._proxy)
        connections = []
        for _ in range(load.sessions):
            facts = ReplicaFacts(self.replica.replica_id, proxy.address)
            connections.append(Connection(Peer(facts), settings, secrets))
            connections[-1].users.add(chooser)
            connections[-1].connect()
        for _ in range(load.reconnects // load.sessions):
            await eventually_async(
                lambda: all(c.peer.state is PeerState.READY for c in connections), timeout_s=60
            )
            await loop.run_in_executor(None, proxy.cut)
            await eventually_async(
                lambda: (
                    all(c.peer.state is not PeerState.READY for c in connections)
                    or all(c.trouble.times == 0 for c in connections)
                )
            )
        for connection in connections:
            await connection.aclose()
        await loop.run_in_executor(None, proxy.close)
        await loop.run_in_executor(None, thread.stop)

    def _proxy(self) -> tuple[TcpProxy, LoopThread]:
        thread = LoopThread()
        return TcpProxy(thread, self.replica.address), thread


async def on_loop(number: int) -> AsyncIterator[int]:
    for item in range(number):
        yield item


def in_thread(number: int) -> Iterator[int]:
    yield from range(number)


def growth(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> dict[str, Any]:
    """By side: MiB of memory, and how many more of what must be flat."""
    return {
        side: {
            "rss MiB": round((after[side]["rss"] - held["rss"]) / MIB, 1),
            **{name: after[side][name] - held[name] for name in FLAT},
        }
        for side, held in before.items()
    }


def still(soak: Soak) -> dict[str, dict[str, int]]:
    """What both sides hold once nothing of it changes any more."""
    seen = [soak.resources()]

    def is_still() -> bool:
        seen.append(soak.resources())
        last, before = seen[-1], seen[-2]
        return all(last[side][name] == before[side][name] for side in last for name in FLAT)

    eventually(is_still, timeout_s=20)
    return seen[-1]


@pytest.mark.parametrize(
    ("warm", "load"),
    [
        pytest.param(
            Load(4_000, 40, 400, 20, 400, 200),
            Load(8_000, 100, 800, 20, 800, 400),
            id="short",
            marks=pytest.mark.full,  # what it finds builds up over time; it takes half a minute
        ),
        pytest.param(
            Load(100_000, 4_000, 5_000, 200, 2_500, 1_250),
            Load(1_000_000, 20_000, 50_000, 200, 20_000, 10_000),
            id="long",
            marks=[pytest.mark.soak, pytest.mark.timeout(900)],
        ),
    ],
)
def test_nothing_grows(serve_instance, callers, measured, warm, load):
    soak = Soak(watched_handle(), callers)
    soak.run(warm)
    before = still(soak)
    started_s = time.monotonic()
    soak.run(load)
    took_s = time.monotonic() - started_s
    grew: dict[str, Any] = {}

    def is_flat() -> bool:
        grew.update(growth(before, soak.resources()))
        return all(side[name] <= 2 for side in grew.values() for name in FLAT)

    try:
        eventually(is_flat, timeout_s=10)
    finally:
        for side, more in grew.items():
            measured(ROW, f"{load} in {took_s:.0f} s", f"{side}: RSS", "≤ +10 MiB", more["rss MiB"])
            counts = {name: more[name] for name in FLAT}
            measured(ROW, f"{load} in {took_s:.0f} s", f"{side}: more of", "± 2", counts)
    assert max(side["rss MiB"] for side in grew.values()) <= MAX_RSS_MIB
