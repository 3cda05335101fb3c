"""How picking and bookkeeping grow with the number of replicas, in one process.

The picker, the router, its accounting and Serve's metrics manager are the real ones; connections
are stand-ins that count a call and send nothing, so that what grows is the routing alone. Times
are CPU time of the thread; each is the median of chunks.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

from bench.stand_ins.serve import ROUTE, cancel_tasks, new_router, running
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.router import Router
from serve_grpc.carriers.counters import Counters
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import CallEventKind, Envelope, RequestFields
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import Picker

__all__ = ["REPLICAS", "Row", "measure_routing"]

Row = dict[str, Any]
"""One measurement: "name", "x", "value", "unit"."""
T = TypeVar("T")

REPLICAS = (1, 10, 100, 1_000, 10_000)
SLOTS = 200
CALLS = 50
UPDATES = 10
SECRET = b"s" * 32
BUDGET_S = 0.1
ENVELOPE = Envelope("__call__", "noop", "noop", False, ROUTE, "default")


def measure_routing(replicas: int) -> list[Row]:
    """Everything of this file for one number of replicas."""
    rows = [*_picks(replicas), *asyncio.run(_updates(replicas)), *asyncio.run(_calls(replicas))]
    return [{"name": name, "x": replicas, "value": v, "unit": unit} for name, v, unit in rows]


def _median_s(run: Callable[[T], object], prepare: Callable[[], T]) -> float:
    """CPU seconds of `run(prepare())`, not counting `prepare`; median of at least three."""
    times: list[float] = []
    end_s = time.monotonic() + BUDGET_S
    while len(times) < 3 or time.monotonic() < end_s:
        argument = prepare()
        begin = time.thread_time()
        run(argument)
        times.append(time.thread_time() - begin)
    return statistics.median(times)


# ---------------------------------------------------------------- the picker


def _peers(count: int) -> list[Peer]:
    peers = [
        Peer(ReplicaFacts(f"replica-{number}", "127.0.0.1:1", max_ongoing_requests=5))
        for number in range(count)
    ]
    for peer in peers:
        peer.state = PeerState.READY
    return peers


def _fill(peers: list[Peer], slots: int) -> None:
    for peer in peers:
        peer.in_flight = peer.reported = slots


def _picks(count: int) -> list[tuple[str, float, str]]:
    peers = _peers(count)
    build_s = _median_s(lambda _: Picker(peers, rng=random.Random(1)), lambda: None)
    picker = Picker(peers, rng=random.Random(1))

    def pick_many(times: int) -> None:
        for _ in range(times):
            picker.pick("", [])

    def us(full: list[Peer], *, calls: int) -> float:
        _fill(peers, 0)
        _fill(full, 5)
        return _median_s(pick_many, lambda: calls) / calls * 1e6

    rows = [
        ("picker built", build_s * 1e3, "ms"),
        ("pick, room everywhere", us([], calls=1_000), "µs"),
        ("pick, every second replica full", us(peers[1::2], calls=200), "µs"),
        ("pick, one has room", us(peers[1:], calls=20), "µs"),
        ("pick, all full", us(peers, calls=20), "µs"),
    ]
    _fill(peers, 0)
    for peer in peers:
        peer.state = PeerState.IDLE
    first_s = _median_s(lambda idle: picker.pick("", idle), list)
    return [*rows, ("pick, no session yet anywhere", first_s * 1e3, "ms")]


# ---------------------------------------------------------------- the replica set


async def _tell(adapter: Any, router: Router, infos: list[Any]) -> float:
    """CPU seconds that a list takes, all turns of the loop together."""
    begin = time.thread_time()
    adapter._metrics._update_running_replicas(infos)
    while not (adapter._lists._work.is_idle and router._work.is_idle):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return time.thread_time() - begin


async def _updates(count: int) -> list[tuple[str, float, str]]:
    """Serve's own share, `RouterMetricsManager`, is in these times."""
    with mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)):
        adapter, _ = new_router()
        router = Router(adapter, Settings())
        await asyncio.sleep(0)
        infos = running(count, max_ongoing_requests=SLOTS)
        first_s = await _tell(adapter, router, infos)
        assert router.feed.is_ready
        sets = (infos[:-1] or infos, infos) * UPDATES
        later_s = statistics.median([await _tell(adapter, router, each) for each in sets])
        router.close("measured")
        await cancel_tasks()
    return [
        ("replica set: the first one", first_s * 1e3, "ms"),
        ("replica set: one replica more or less", later_s * 1e3, "ms"),
    ]


# ---------------------------------------------------------------- calls through the router


class _Connection:
    """In the place of a `Connection`: counts what is sent on its peer."""

    peer_max_message_bytes = 2**62
    takes_bytes = True
    is_down = False

    def __init__(self, facts: ReplicaFacts) -> None:
        self.peer = Peer(facts)
        self.peer.state = PeerState.READY

    @property
    def takes_calls(self) -> bool:
        return self.peer.has_room

    def send(self, _: Delivery, *, is_new: bool = False) -> int:
        self.peer.on_sent()
        return 1


class _Pool:
    """In the place of the `ConnectionPool`."""

    def __init__(self) -> None:
        self.connections: dict[str, _Connection] = {}
        self.counters: defaultdict[tuple[str, str], Counters] = defaultdict(Counters)
        self.is_alive = True

    def states(self) -> Counter[tuple[str, str, str]]:
        return Counter()

    def acquire(self, facts: ReplicaFacts, _: Router) -> _Connection:
        return self.connections.setdefault(facts.replica_id, _Connection(facts))

    def release(self, connection: _Connection, _: Router) -> None:
        del self.connections[connection.peer.facts.replica_id]


def _new_calls(router: Router) -> list[Delivery]:
    request = RequestFields(ENVELOPE, b"", "request")
    return [
        router.new_delivery(Call(request, mailbox=router.mailbox, response_loads=bytes))
        for _ in range(CALLS)
    ]


async def _calls(count: int) -> list[tuple[str, float, str]]:
    pool = _Pool()
    # All are in the subset: asked is what grows with the replicas that a caller chooses from.
    everyone = mock.patch("serve_grpc.caller.replicas.settings", Settings(subset_size=0))
    with everyone, mock.patch("serve_grpc.caller.router.pool_of", return_value=pool):
        adapter, _ = new_router()
        router = Router(adapter, Settings())
        await asyncio.sleep(0)
    await _tell(adapter, router, running(count, max_ongoing_requests=SLOTS))
    connections = list(pool.connections.values())
    peers = [connection.peer for connection in connections]

    def leave_one_slot(connection: Any) -> None:
        connection.peer.in_flight -= 1  # of a call that is not one of these
        connection.peer.reported -= 1

    def submit_all(calls: list[Delivery]) -> None:
        for call in calls:
            router.submit(call)

    def there_and_back(calls: list[Delivery]) -> None:
        submit_all(calls)
        for call in calls:
            connection = call.connection
            assert connection is not None
            connection.peer.reported -= 1
            call.on_reply(CallEventKind.RESULT, b"", None)
            router.on_change(connection)
        adapter._flush()

    def us(run: Callable[[Any], object], prepare: Callable[[], Any]) -> float:
        return _median_s(run, prepare) / CALLS * 1e6

    def fresh() -> list[Delivery]:
        return _new_calls(router)

    rows = [("call sent and answered, room everywhere", us(there_and_back, fresh), "µs")]
    _fill(peers[1::2], SLOTS)
    half_full_us = us(there_and_back, fresh)
    rows.append(("call sent and answered, every second replica full", half_full_us, "µs"))

    _fill(peers, SLOTS)
    rows.append(("call that must wait, all full", us(submit_all, fresh), "µs"))

    def free_one_after_the_other(freed: list[Any]) -> None:
        for connection in freed:
            leave_one_slot(connection)
            router.on_change(connection)  # the first call of the line takes the slot

    def some_of_the_replicas() -> list[Any]:
        submit_all(fresh())  # as many as leave
        return rng.choices(connections, k=CALLS)

    rng = random.Random(1)
    leave_us = us(free_one_after_the_other, some_of_the_replicas)
    rows.append(("waiting call sent when a slot is free", leave_us, "µs"))
    router.close("measured")
    await cancel_tasks()
    return rows
