"""Power of two choices with preferences: who is picked, who never is, and how evenly."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import Picker

NOT_READY = [state for state in PeerState if state is not PeerState.READY]


def peer(name: str, load: int = 0, room: int = 100, **facts: object) -> Peer:
    """A ready peer with `load` calls of ours on it."""
    made = Peer(ReplicaFacts(name, f"{name}:1", max_ongoing_requests=room, **facts))
    made.state = PeerState.READY
    made.in_flight = made.reported = load
    return made


def picks(picker: Picker, count: int, model_id: str = "") -> Counter[str]:
    """How often each replica was picked, without sending anything."""
    chosen = [picker.pick(model_id, []) for _ in range(count)]
    return Counter(one.facts.replica_id for one in chosen if one is not None)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(20)


def test_nobody_is_picked_from_nobody(rng: random.Random) -> None:
    assert Picker([], rng=rng).pick("", []) is None


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_only_one_with_room_is_always_found(rng: random.Random, count: int) -> None:
    full = [peer(f"full{i}", load=100) for i in range(count - 1)]
    picker = Picker([*full, peer("free")], rng=rng)
    assert picks(picker, 200) == {"free": 200}


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_nobody_is_picked_when_all_are_full(rng: random.Random, count: int) -> None:
    picker = Picker([peer(f"r{i}", load=100) for i in range(count)], rng=rng)
    assert picks(picker, 50) == {}


@pytest.mark.parametrize("state", NOT_READY)
@pytest.mark.parametrize("count", [2, 5])
def test_a_replica_that_is_not_ready_is_never_picked(
    rng: random.Random, state: PeerState, count: int
) -> None:
    peers = [peer(f"r{i}", load=i) for i in range(count)]
    peers[0].state = state
    assert "r0" not in picks(Picker(peers, rng=rng), 300)


@pytest.mark.parametrize("count", [2, 5])
def test_a_blocked_replica_is_never_picked(rng: random.Random, count: int) -> None:
    peers = [peer(f"r{i}", load=i) for i in range(count)]
    peers[0].blocked = True
    assert "r0" not in picks(Picker(peers, rng=rng), 300)


def test_a_replica_that_turned_idle_by_an_old_report_is_still_picked(rng: random.Random) -> None:
    alone = peer("r0", room=2)
    alone.reported = 50
    assert picks(Picker([alone], rng=rng), 5) == {"r0": 5}


def test_replicas_without_a_session_are_named_for_their_owner_to_connect(
    rng: random.Random,
) -> None:
    peers = [peer(f"r{i}") for i in range(4)]
    for one in peers:
        one.state = PeerState.IDLE
    idle: list[Peer] = []
    assert Picker(peers, rng=rng, node_id="n").pick("", idle) is None
    assert {one.facts.replica_id for one in idle} == {"r0", "r1", "r2", "r3"}


def test_equal_replicas_are_picked_equally(rng: random.Random) -> None:
    counts = picks(Picker([peer(f"r{i}") for i in range(5)], rng=rng), 10_000)
    assert len(counts) == 5
    assert all(1800 < count < 2200 for count in counts.values())


def test_of_two_the_less_busy_is_always_picked(rng: random.Random) -> None:
    picker = Picker([peer("busy", load=2), peer("idle", load=1)], rng=rng)
    assert picks(picker, 200) == {"idle": 200}


def test_the_busiest_of_many_is_never_picked_and_no_other_starves(rng: random.Random) -> None:
    counts = picks(Picker([peer(f"r{i}", load=i) for i in range(5)], rng=rng), 10_000)
    assert "r4" not in counts
    # Each pair is equally likely: r0 wins 4 of 10, r1 3, r2 2, r3 1.
    shares = [counts[f"r{i}"] / 10_000 for i in range(4)]
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)


def test_sent_calls_spread_evenly(rng: random.Random) -> None:
    peers = [peer(f"r{i}") for i in range(8)]
    picker = Picker(peers, rng=rng)
    for _ in range(400):
        chosen = picker.pick("", [])
        assert chosen is not None
        chosen.on_sent()
    assert all(46 <= one.load <= 54 for one in peers)


def test_local_replicas_come_first_then_the_zone_then_the_rest(rng: random.Random) -> None:
    near = [peer(f"near{i}", node_id="n1", zone="z1") for i in range(3)]
    zone = [peer(f"zone{i}", node_id="n2", zone="z1") for i in range(3)]
    far = [peer(f"far{i}", node_id="n3", zone="z2") for i in range(3)]
    picker = Picker([*far, *zone, *near], rng=rng, node_id="n1", zone="z1")
    for tier in ("near", "zone", "far"):
        counts = picks(picker, 200)
        assert {name[:-1] for name in counts} == {tier}
        for one in picker.peers:
            if one.facts.replica_id.startswith(tier):
                one.on_report(0)
                one.in_flight = 100
    assert picks(picker, 10) == {}


@pytest.mark.parametrize("state", [PeerState.IDLE, PeerState.CONNECTING])
def test_a_call_waits_for_a_preferred_replicas_first_session(
    rng: random.Random, state: PeerState
) -> None:
    near, far = peer("near", node_id="n1"), peer("far", node_id="n2")
    near.state = state
    picker = Picker([near, far], rng=rng, node_id="n1")
    idle: list[Peer] = []
    assert picker.pick("", idle) is None
    assert set(idle) == {near}
    near.state = PeerState.LOST
    assert picks(picker, 20) == {"far": 20}
    near.state = PeerState.READY
    assert picks(picker, 20) == {"near": 20}


def test_a_call_waits_for_nobody_while_another_preferred_replica_has_room(
    rng: random.Random,
) -> None:
    opening, ready = peer("opening", node_id="n1"), peer("ready", node_id="n1")
    opening.state = PeerState.CONNECTING
    picker = Picker([opening, ready, peer("far", node_id="n2")], rng=rng, node_id="n1")
    assert picks(picker, 20) == {"ready": 20}


def test_a_call_without_a_preference_goes_to_whoever_is_ready(rng: random.Random) -> None:
    opening = peer("opening")
    opening.state = PeerState.CONNECTING
    assert picks(Picker([opening, peer("ready")], rng=rng), 20) == {"ready": 20}


def test_without_preferences_place_does_not_matter(rng: random.Random) -> None:
    peers = [peer("a", node_id="n1", zone="z1"), peer("b", node_id="n2", zone="z2")]
    assert set(picks(Picker(peers, rng=rng), 200)) == {"a", "b"}


def test_a_busy_local_replica_is_preferred_while_it_has_room(rng: random.Random) -> None:
    peers = [peer("near", load=99, node_id="n1"), peer("far", node_id="n2")]
    assert picks(Picker(peers, rng=rng, node_id="n1"), 50) == {"near": 50}


@pytest.mark.parametrize("others", [1, 6])
def test_a_replica_that_holds_the_model_comes_first(rng: random.Random, others: int) -> None:
    holder = peer("holder", load=50, model_ids=frozenset({"m", "k"}))
    rest = [peer(f"r{i}") for i in range(others)]
    picker = Picker([*rest, holder], rng=rng)
    assert picks(picker, 100, "m") == {"holder": 100}


def test_without_a_holder_the_replicas_with_the_fewest_models_come_first(
    rng: random.Random,
) -> None:
    peers = [
        peer("two", model_ids=frozenset({"a", "b"})),
        peer("one", load=9, model_ids=frozenset({"a"})),
        peer("one too", load=9, model_ids=frozenset({"b"})),
    ]
    picker = Picker(peers, rng=rng)
    assert set(picks(picker, 200, "new")) == {"one", "one too"}
    peers[1].blocked = peers[2].blocked = True
    assert picks(picker, 10, "new") == {"two": 10}


def test_a_full_holder_lets_the_call_go_elsewhere(rng: random.Random) -> None:
    holder = peer("holder", load=100, model_ids=frozenset({"m"}))
    picker = Picker([holder, peer("other")], rng=rng)
    assert picks(picker, 20, "m") == {"other": 20}


def test_a_call_without_a_model_does_not_care_who_holds_one(rng: random.Random) -> None:
    peers = [peer("holder", model_ids=frozenset({"m"})), peer("other")]
    assert set(picks(Picker(peers, rng=rng), 200)) == {"holder", "other"}


def test_the_same_seed_gives_the_same_picks() -> None:
    def names() -> list[str]:
        picker = Picker([peer(f"r{i}") for i in range(6)], rng=random.Random(5))
        chosen = [picker.pick("", []) for _ in range(100)]
        return [one.facts.replica_id for one in chosen if one is not None]

    assert names() == names()
    assert len(names()) == 100


# ------------------------------------------------------------ standing by


@pytest.mark.parametrize("count", [1, 2, 5])
def test_calls_stand_by_only_where_that_is_allowed(rng: random.Random, count: int) -> None:
    peers = [peer(f"r{i}", load=3, room=3) for i in range(count)]
    picker = Picker(peers, rng=rng)
    assert picker.pick_standby() is None
    peers[-1].standby = 1
    assert picker.pick_standby() is peers[-1]
    peers[-1].on_sent()
    assert picker.pick_standby() is None


def test_calls_stand_by_where_the_row_is_shortest(rng: random.Random) -> None:
    peers = [peer("long", load=9, room=3), peer("short", load=12, room=10)]
    for one in peers:
        one.standby = 10
    assert Picker(peers, rng=rng).pick_standby() is peers[1]
