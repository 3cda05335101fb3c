"""Which replica is worse than the others at the same work."""

from __future__ import annotations

import random

import pytest

from serve_grpc.routing import outliers as outliers_module
from serve_grpc.routing.outliers import QUIET, SAMPLE, Outliers
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts


@pytest.fixture
def outliers() -> Outliers:
    return Outliers()


def ready(name: str) -> Peer:
    peer = Peer(ReplicaFacts(name, "10.0.0.1:7000"))
    peer.state = PeerState.READY
    return peer


def is_outlier(outliers: Outliers, peer: Peer, method: str = "work") -> bool:
    """After one more failure."""
    return outliers.on_failure(peer, method) and outliers.has_better(peer, method)


def test_a_replica_that_fails_what_another_one_does_well_is_an_outlier(outliers: Outliers) -> None:
    bad, good = ready("bad"), ready("good")
    outliers.on_failure(bad, "work")
    for _ in range(10):
        outliers.on_success(good, "work")
    failures = 1
    while not is_outlier(outliers, bad):
        failures += 1
    assert 10 <= failures <= 20


def test_a_replica_beside_which_nobody_did_the_same_work_is_none(outliers: Outliers) -> None:
    bad, good = ready("bad"), ready("good")
    outliers.on_failure(good, "other work")
    for _ in range(100):
        outliers.on_success(good, "other work")
        assert not is_outlier(outliers, bad)


def test_where_all_fail_none_is_an_outlier(outliers: Outliers) -> None:
    peers = [ready(f"{i}") for i in range(3)]
    assert not any(is_outlier(outliers, peer) for _ in range(100) for peer in peers)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_bad_input_that_goes_everywhere_makes_no_outlier(outliers: Outliers, share: float) -> None:
    rng, peers = random.Random(7), [ready(f"{i}") for i in range(3)]
    for _ in range(30_000):
        peer = rng.choice(peers)
        if rng.random() < share:
            assert not is_outlier(outliers, peer)
        else:
            outliers.on_success(peer, "work")


def test_a_better_replica_is_one_that_can_be_reached(outliers: Outliers) -> None:
    bad, good = ready("bad"), ready("good")
    outliers.on_failure(bad, "work")
    for _ in range(10):
        outliers.on_success(good, "work")
    assert outliers.has_better(bad, "work")
    good.state = PeerState.SUSPECT
    assert not outliers.has_better(bad, "work")
    good.state = PeerState.READY
    outliers.forget(good)
    assert not outliers.has_better(bad, "work")


def test_work_that_no_longer_fails_is_not_watched(outliers: Outliers) -> None:
    peer = ready("one")
    outliers.on_failure(peer, "work")
    for _ in range(QUIET):
        assert len(outliers) == 1
        outliers.on_success(peer, "work")
    assert len(outliers) == 0


def test_no_more_kinds_of_work_are_watched_than_some(outliers: Outliers) -> None:
    for number in range(1000):
        outliers.on_failure(ready("one"), f"work {number}")
    assert len(outliers) == outliers_module.MAX_WORKS


def test_calls_that_end_on_replicas_that_are_gone_are_not_held_against_those_that_stay(
    outliers: Outliers,
) -> None:
    for number in range(SAMPLE):
        gone = ready(f"{number}")
        gone.become(PeerState.GONE)
        outliers.forget(gone)
        assert not outliers.on_failure(gone, "work")
        outliers.on_success(gone, "work")
    bad, good = ready("bad"), ready("good")
    assert not is_outlier(outliers, bad)
    for _ in range(10):
        outliers.on_success(good, "work")
    assert any(is_outlier(outliers, bad) for _ in range(20))
