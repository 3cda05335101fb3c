"""Which replicas of a large fleet a router holds connections to, when more, and when fewer again.

Pool, connections, sessions and replicas are real; links are loopback, and time is virtual.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serve_grpc.caller import pool as pool_module
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.held import LOOK_S
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.replicas import Replicas
from serve_grpc.config import Settings
from serve_grpc.routing.peer import PeerState, ReplicaFacts
from tests.property.simulated_fleet import Fleet, SimulatedReplica
from tests.property.virtual_time import run
from tests.unit.sessions import SECRET

SIZE = 6
SLOTS = 3


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: (SECRET,))


class Scene:
    """A fleet, and the replicas as a router has them. Is a `ConnectionUser`."""

    def __init__(self, rng: random.Random, count: int, **options: Any) -> None:
        self.fleet = Fleet(rng, 0.01)
        self.pool = ConnectionPool(Settings())
        self.replicas = Replicas(
            self.pool,
            self,
            **{"node_id": "", "zone": "", "subset_size": SIZE, "caller_id": b"caller"} | options,
        )
        self.news: list[Connection] = []
        for number in range(count):
            replica = SimulatedReplica(number, SLOTS)
            self.fleet.replicas[replica.address] = replica

    def on_change(self, connection: Connection) -> None:
        self.news.append(connection)

    def facts(self, number: int, **more: Any) -> ReplicaFacts:
        name = f"replica-{number}"
        return ReplicaFacts(name, f"{name}:1", max_ongoing_requests=SLOTS, **more)

    def list_all(self) -> None:
        self.replicas.update([self.facts(n) for n in range(len(self.fleet.replicas))], ())

    @property
    def held(self) -> set[str]:
        """Ids of replicas to which the pool has a connection."""
        return set(self.pool._connections)

    @property
    def sessions(self) -> int:
        """How many are open."""
        return sum(peer.state is PeerState.READY for peer in self.replicas.held)

    async def pick(self, model_id: str = "") -> Connection:
        """As a call that waits until it finds room."""
        for _ in range(100):
            found = self.replicas.pick(model_id)
            if found is not None:
                found.peer.on_sent()
                return found
            await asyncio.sleep(0.01)
        raise AssertionError("no room")

    async def fill(self, calls: int) -> list[Connection]:
        """So many calls, one after the other."""
        return [await self.pick() for _ in range(calls)]

    async def full(self) -> None:
        """All of the subset have their sessions, and no room."""
        empty(await self.fill(SIZE))
        await asyncio.sleep(0.1)
        for peer in self.replicas.held:
            peer.in_flight = peer.reported = SLOTS


def empty(used: list[Connection]) -> None:
    """The calls are over."""
    for connection in used:
        connection.peer.in_flight -= 1
        connection.peer.reported -= 1


def play(count: int, check: Callable[[Scene], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main(rng: random.Random) -> None:
        scene = Scene(rng, count, **options)
        with dialling_by(scene.fleet.dial):
            try:
                await check(scene)
            finally:
                scene.replicas.update((), [f"replica-{n}" for n in range(count + 9)])
                await scene.pool.aclose()

    run(main, 3)


# ------------------------------------------------------------ the subset


def test_few_are_all_held() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        assert len(scene.held) == SIZE
        used = await scene.fill(SIZE * SLOTS)
        assert {connection.peer.in_flight for connection in used} == {SLOTS}
        assert scene.replicas.pick("") is None

    play(SIZE, check)


def test_of_many_a_few_are_held_and_all_are_told_of() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        assert len(scene.held) == SIZE
        await scene.fill(SIZE)
        await asyncio.sleep(0.1)
        assert len(scene.held) == scene.sessions == SIZE
        assert len(scene.replicas) == 50
        peers = scene.replicas.peers
        assert {peer.facts.replica_id for peer in peers} == {f"replica-{n}" for n in range(50)}
        assert sum(peer.in_flight for peer in peers) == SIZE

    play(50, check)


def test_with_size_0_all_are_held() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        assert len(scene.held) == 50

    play(50, check, subset_size=0)


def test_routers_of_one_process_choose_the_same() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        held = scene.held
        other = Scene(random.Random(4), 50)
        other.list_all()
        assert other.held == held
        third = Scene(random.Random(4), 50, caller_id=b"another")
        third.list_all()
        assert third.held != held

    play(50, check)


def test_processes_choose_others_even_if_one_was_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        same = Scene(random.Random(4), 50, caller_id=None)
        same.list_all()
        assert same.held == scene.held
        monkeypatch.setattr("os.getpid", lambda: 1)
        child = Scene(random.Random(4), 50, caller_id=None)
        child.list_all()
        assert child.held != scene.held

    play(50, check, caller_id=None)


def test_who_leaves_the_list_is_let_go_and_one_comes_in_its_place() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        before = scene.held
        outside = next(n for n in range(50) if f"replica-{n}" not in before)
        scene.replicas.update((), [f"replica-{outside}"])
        assert scene.held == before
        gone = sorted(before)[0]
        scene.replicas.update((), [gone])
        assert len(scene.held) == SIZE
        assert before - scene.held == {gone}
        assert scene.replicas.connection_to(gone) is None

    play(50, check)


def test_a_replica_that_changes_keeps_its_connection() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        name = sorted(scene.held)[0]
        connection = scene.replicas.connection_to(name)
        number = int(name.partition("-")[2])
        scene.replicas.update([scene.facts(number, model_ids=frozenset({"m"}))], ())
        assert scene.replicas.connection_to(name) is connection
        assert connection is not None
        assert connection.peer.facts.model_ids == {"m"}
        assert await scene.pick("m") is connection

    play(50, check)


def test_nobody_is_held_twice_or_for_ever_whatever_changes_together() -> None:
    async def check(scene: Scene) -> None:
        for step in range(40):
            facts = [scene.facts(n, model_ids=frozenset({f"{step}"})) for n in range(step + 9)]
            scene.replicas.update(facts, [f"replica-{step % 7}"] if step % 2 else ())
            assert scene.held == {peer.facts.replica_id for peer in scene.replicas.held}
            assert len(scene.held) == SIZE

    play(60, check)


def test_local_ones_are_chosen_from_first_and_others_when_they_are_full() -> None:
    async def check(scene: Scene) -> None:
        places = {0: "here", 1: "here"}
        scene.replicas.update(
            [scene.facts(n, node_id=places.get(n, "there")) for n in range(50)], ()
        )
        assert {"replica-0", "replica-1"} < scene.held
        used = await scene.fill(2 * SLOTS + 1)
        names = [connection.peer.facts.replica_id for connection in used]
        assert set(names[:-1]) == {"replica-0", "replica-1"}
        assert names[-1] not in names[:-1]

    play(50, check, node_id="here")


# ------------------------------------------------------------ more of them


def test_a_call_that_finds_the_subset_full_gets_one_from_outside() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        await scene.full()
        began_s = asyncio.get_running_loop().time()
        held = scene.held
        await scene.pick()
        assert held < scene.held
        assert asyncio.get_running_loop().time() - began_s < 0.1

    play(50, check)


def test_calls_that_wait_open_as_many_as_they_need_at_once() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        await scene.full()
        assert scene.replicas.pick("") is None
        for waiting in range(1, 31):
            assert not scene.replicas.widen(waiting)
        opening = len(scene.held) - SIZE
        assert 30 / SLOTS <= opening <= 2 * 30 / SLOTS
        for waiting in range(1, 31):
            scene.replicas.widen(waiting)
        assert len(scene.held) == SIZE + opening

    play(100, check)


def test_calls_that_wait_for_the_first_sessions_open_no_more() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        assert scene.replicas.pick("") is None
        assert not scene.replicas.widen(SIZE * SLOTS)
        assert len(scene.held) == SIZE
        scene.replicas.widen(SIZE * SLOTS + 1)
        assert len(scene.held) > SIZE

    play(50, check)


def test_if_those_of_the_subset_cannot_be_reached_others_are_asked() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        for name in scene.held:
            del scene.fleet.replicas[f"{name}:1"]
        connection = await scene.pick()
        assert connection.peer.state is PeerState.READY

    play(50, check)


def test_one_that_cannot_be_reached_is_made_up_for() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        for name in sorted(scene.held)[:3]:
            del scene.fleet.replicas[f"{name}:1"]
        for _ in range(20):
            empty(await scene.fill(SIZE))
            await asyncio.sleep(0.1)
        assert scene.sessions >= SIZE - 1

    play(50, check)


def test_a_caller_with_many_calls_holds_more_before_it_lacks_room() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        used = await scene.fill(SIZE * SLOTS // 2)
        for _ in range(50):
            more = await scene.fill(SIZE)
            empty(more)
        assert len(scene.held) > 2 * SIZE
        empty(used)

    play(100, check)


def test_those_that_turned_a_call_away_are_asked_again_before_the_subset_grows() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        empty(await scene.fill(SIZE))
        await asyncio.sleep(0.1)
        peers = scene.replicas.held
        for peer in peers[1:]:
            peer.blocked = True
        for _ in range(2 * SIZE):
            empty([await scene.pick()])
        assert not any(peer.blocked for peer in peers)
        assert len(scene.held) == SIZE

    play(50, check)


@pytest.mark.parametrize("size", [1, 2, SIZE])
def test_a_call_that_all_of_the_subset_turn_away_goes_beyond_it(size: int) -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        inside = scene.held
        for name in inside:
            scene.pool._connections[name].connect()
        await asyncio.sleep(0.1)
        for _ in range(size):
            full = await scene.pick()
            assert full.peer.facts.replica_id in inside
            empty([full])
            full.peer.blocked = True
        assert scene.replicas.pick("") is None  # as long as those beyond are being reached
        assert scene.held > inside

    play(50, check, subset_size=size)


def test_room_outside_is_room_to_come() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        assert scene.replicas.room_to_come == 50 * SLOTS
        await scene.full()
        assert scene.replicas.room_to_come == (50 - SIZE) * SLOTS
        while scene.replicas.room_to_come:
            await scene.pick()
        assert len(scene.held) == 50

    play(50, check)


# ------------------------------------------------------------ beside the subset


def outside(scene: Scene) -> int:
    """The number of a replica that is not in the subset."""
    return next(n for n in range(50) if f"replica-{n}" not in scene.held)


def test_any_replica_can_be_called_by_name_and_is_let_go_when_nobody_does() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        name = f"replica-{outside(scene)}"
        connection = scene.replicas.connection_to(name)
        assert connection is not None
        connection.connect()
        assert scene.replicas.connection_to(name) is connection
        used = await scene.fill(SIZE * SLOTS)
        assert connection not in used
        connection.peer.on_sent()
        await asyncio.sleep(3 * LOOK_S)
        assert name in scene.held  # its call is not over
        empty([connection])
        await asyncio.sleep(2 * LOOK_S)
        assert name not in scene.held
        assert connection.peer.state is PeerState.GONE
        assert scene.replicas.connection_to(name) is not connection

    play(50, check)


@pytest.mark.parametrize("why", ["full", "lost"])
def test_one_that_a_call_waits_for_by_name_is_not_let_go(why: str) -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        number = outside(scene)
        if why == "lost":
            del scene.fleet.replicas[f"replica-{number}:1"]
        connection = scene.replicas.connection_to(f"replica-{number}")
        assert connection is not None
        connection.connect()
        await asyncio.sleep(1)
        connection.peer.blocked = why == "full"
        await asyncio.sleep(5 * LOOK_S)
        assert scene.replicas.connection_to(f"replica-{number}") is connection

    play(50, check)


def test_a_call_for_a_model_goes_to_who_holds_it_wherever_that_is() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        number = outside(scene)
        scene.replicas.update([scene.facts(number, model_ids=frozenset({"m"}))], ())
        assert len(scene.held) == SIZE
        holder = await scene.pick("m")
        assert holder.peer.facts.replica_id == f"replica-{number}"
        used = await scene.fill(SIZE * SLOTS)
        assert holder not in used  # for it is not in the subset
        empty([holder])
        await asyncio.sleep(3 * LOOK_S)
        assert f"replica-{number}" not in scene.held
        assert await scene.pick("m") is not holder

    play(50, check)


def test_of_many_holders_as_many_are_held_as_the_calls_need() -> None:
    async def check(scene: Scene) -> None:
        m = frozenset({"m"})
        scene.replicas.update([scene.facts(n, model_ids=m) for n in range(50)], ())
        used = [await scene.pick("m") for _ in range(SIZE)]
        assert len(scene.held) == SIZE
        used += [await scene.pick("m") for _ in range(50 * SLOTS - SIZE)]
        assert len(scene.held) == len(set(used)) == 50

    play(50, check)


# ------------------------------------------------------------ fewer again


def test_it_shrinks_when_the_load_is_gone_and_running_calls_go_on() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        used = await scene.fill(40 * SLOTS)
        assert len(scene.held) >= 40
        running = used[-1]
        running.peer.on_sent()
        empty(used)
        sizes = []
        for _ in range(12):
            await asyncio.sleep(LOOK_S)
            sizes.append(len(scene.held))
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[2] > SIZE
        assert sizes[-1] in (SIZE, SIZE + 1)
        assert running.peer.state is PeerState.READY
        empty([running])
        await asyncio.sleep(2 * LOOK_S)
        assert len(scene.held) == scene.sessions == SIZE

    play(60, check)


def test_an_idle_router_keeps_no_timer() -> None:
    async def check(scene: Scene) -> None:
        scene.list_all()
        assert scene.replicas._held._timer is None
        scene.replicas.connection_to(f"replica-{outside(scene)}")
        assert scene.replicas._held._timer is not None
        scene.replicas.update((), [f"replica-{n}" for n in range(50)])
        assert scene.replicas._held._timer is None
        assert scene.held == set()

    play(50, check)
