"""What a caller believes of one replica: whether it may send, and how busy the replica is."""

from __future__ import annotations

import pytest

from serve_grpc.routing.peer import MOVES, Peer, PeerState, ReplicaFacts
from serve_grpc.states import IllegalMoveError


@pytest.fixture
def peer() -> Peer:
    """A replica that is ready and runs at most three requests."""
    ready = Peer(ReplicaFacts("r1", "10.0.0.1:7000", max_ongoing_requests=3))
    ready.state = PeerState.READY
    return ready


def test_a_new_peer_has_no_session_and_no_room() -> None:
    peer = Peer(ReplicaFacts("r1", "10.0.0.1:7000"))
    assert (peer.state, peer.has_room, peer.load) == (PeerState.IDLE, False, 0)


@pytest.mark.parametrize("state", list(PeerState))
def test_only_a_ready_peer_has_room(peer: Peer, state: PeerState) -> None:
    peer.state = state
    assert peer.has_room is (state is PeerState.READY)


def test_a_blocked_peer_has_no_room_however_idle(peer: Peer) -> None:
    peer.blocked = True
    assert not peer.has_room


def test_calls_of_our_own_fill_a_peer(peer: Peer) -> None:
    seen = []
    for _ in range(4):
        seen.append(peer.has_room)
        peer.on_sent()
    assert seen == [True, True, True, False]
    assert peer.load == 4


def test_load_of_others_is_believed_while_an_answer_of_ours_is_due(peer: Peer) -> None:
    peer.on_sent()
    peer.on_report(3)
    assert not peer.has_room


def test_a_stale_report_never_keeps_the_only_caller_out(peer: Peer) -> None:
    peer.on_sent()
    peer.on_report(50)
    peer.in_flight = 0
    assert peer.has_room


def test_a_fresh_report_replaces_a_guess(peer: Peer) -> None:
    peer.on_sent()
    peer.on_report(2)
    peer.on_sent()
    assert peer.load == 3
    peer.on_report(1)
    assert peer.load == 2  # two of ours are still unanswered


def test_the_load_is_never_below_what_we_have_there(peer: Peer) -> None:
    for _ in range(3):
        peer.on_sent()
    peer.on_report(0)
    assert peer.load == 3


def test_a_peer_shows_its_state(peer: Peer) -> None:
    peer.blocked = True
    peer.on_report(2)
    assert repr(peer) == "<Peer r1 ready blocked load 2/3>"


def test_a_penalised_peer_has_room_for_one_call_at_a_time_while_it_may_be_probed(
    peer: Peer,
) -> None:
    peer.penalise()
    assert not peer.has_room
    peer.may_probe = True
    assert peer.has_room
    peer.on_sent()
    assert not peer.has_room


def test_a_full_peer_takes_as_many_more_as_may_stand_by(peer: Peer) -> None:
    peer.on_report(0, standby=2)
    seen = []
    for _ in range(6):
        seen.append((peer.has_room, peer.has_standby_room))
        peer.on_sent()
    full, over = (False, True), (False, False)
    assert seen == [(True, True)] * 3 + [full] * 2 + [over]


def test_a_report_that_says_nothing_of_it_ends_standing_by(peer: Peer) -> None:
    peer.on_report(3, standby=2)
    peer.on_report(3)
    assert not peer.has_standby_room


@pytest.mark.parametrize("state", list(PeerState))
def test_calls_stand_by_only_at_a_ready_peer(peer: Peer, state: PeerState) -> None:
    peer.on_report(3, standby=2)
    peer.state = state
    assert peer.has_standby_room is (state is PeerState.READY)


@pytest.mark.parametrize("trouble", ["blocked", "penalised"])
def test_no_call_stands_by_at_a_peer_in_trouble(peer: Peer, trouble: str) -> None:
    peer.on_report(3, standby=2)
    setattr(peer, trouble, True)
    assert not peer.has_standby_room


@pytest.mark.parametrize("before", list(PeerState))
@pytest.mark.parametrize("after", list(PeerState))
def test_only_the_moves_of_the_table_are_made(before: PeerState, after: PeerState) -> None:
    peer = Peer(ReplicaFacts("r1", "10.0.0.1:7000"))
    peer.state = before
    if after is before or after in MOVES[before]:
        assert peer.become(after) is (after is not before)
        assert peer.state is after
    else:
        with pytest.raises(IllegalMoveError, match=f"{before.name} to {after.name}"):
            peer.become(after)
        assert peer.state is before


def test_a_replica_that_is_gone_stays_so() -> None:
    assert set(MOVES) == set(PeerState)
    assert MOVES[PeerState.GONE] == frozenset()
    assert all(PeerState.GONE in after for state, after in MOVES.items() if after)
