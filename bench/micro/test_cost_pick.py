"""Pick: which replica gets a call. How it grows with full ones is in bench/growth/routing.py."""

from __future__ import annotations

import random
from typing import Any

import pytest

from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import Picker


def peers(count: int) -> list[Peer]:
    made = []
    for number in range(count):
        peer = Peer(ReplicaFacts(str(number), "127.0.0.1:1", max_ongoing_requests=5))
        peer.state = PeerState.READY
        made.append(peer)
    return made


@pytest.mark.parametrize("replicas", [1, 2, 10, 100, 1_000, 10_000], ids="{} replicas".format)
def test_pick_with_room_everywhere(cost: Any, replicas: int) -> None:
    known = peers(replicas)
    picker = Picker(known, rng=random.Random(1))
    assert cost(picker.pick, "", [], part="pick", side="caller") in known


def test_pick_for_a_model(cost: Any) -> None:
    known = peers(10)
    for peer in known[:2]:
        facts = ReplicaFacts(
            peer.facts.replica_id, "", model_ids=frozenset({"m"}), max_ongoing_requests=5
        )
        peer.facts = facts
    picker = Picker(known, rng=random.Random(1))
    assert cost(picker.pick, "m", [], part="pick", side="caller") in known[:2]
