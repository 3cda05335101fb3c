"""The handshake: who gets a session, who is refused and with which reason."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Challenge,
    Hello,
    Proof,
    Refusal,
    ReplicaBatch,
    Request,
    Template,
)
from serve_grpc.protocol import handshake
from serve_grpc.protocol.caller import HandshakeRefused
from serve_grpc.protocol.handshake import SessionState, common_version
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.protocol.wire import WireError
from tests.unit.sessions import (
    LIMIT,
    REPLICA_ID,
    drain_into,
    fields,
    new_caller,
    new_replica,
    open_pair,
)


def refusal_of(replica: ReplicaSession) -> Refusal:
    """What the replica says when it refuses."""
    assert replica.state is SessionState.CLOSED
    return ReplicaBatch.FromString(replica.outbox.take()).refusal


def hello(**changes: object) -> bytes:
    values = {"min_version": 1, "max_version": 1, "replica_id": REPLICA_ID, "nonce": b"n" * 16}
    return CallerBatch(hello=Hello(**{**values, **changes})).SerializeToString()


def test_two_members_of_a_cluster_get_a_session() -> None:
    caller, replica = open_pair()
    assert (caller.state, replica.state) == (SessionState.OPEN, SessionState.OPEN)
    assert caller.peer_max_message_bytes == LIMIT


def test_the_caller_is_told_once_that_the_session_is_open() -> None:
    caller, replica = new_caller(), new_replica()
    replica.receive(caller.outbox.take())
    challenged = caller.receive(replica.outbox.take())
    replica.receive(caller.outbox.take())
    replica.stamp(3)
    welcomed = caller.receive(replica.outbox.take())
    assert (challenged.opened, welcomed.opened, welcomed.load) == (False, True, 3)


def of_any_secret(message: bytes) -> bytes:
    """A hello that does not say which secret its caller holds."""
    batch = CallerBatch.FromString(message)
    batch.hello.ClearField("key_id")
    return batch.SerializeToString()


def test_a_caller_refuses_a_replica_with_another_secret() -> None:
    caller, replica = new_caller(), new_replica(secret=b"another secret")
    replica.receive(of_any_secret(caller.outbox.take()))
    with pytest.raises(HandshakeRefused) as raised:
        caller.receive(replica.outbox.take())
    assert raised.value.reason == Refusal.UNAUTHENTICATED
    assert caller.state is SessionState.CLOSED


def test_a_caller_proves_nothing_to_a_replica_with_another_secret() -> None:
    caller, replica = new_caller(), new_replica(secret=b"another secret")
    replica.receive(of_any_secret(caller.outbox.take()))
    with pytest.raises(HandshakeRefused):
        caller.receive(replica.outbox.take())
    assert not caller.outbox


@pytest.mark.parametrize("mac", [b"", b"\x00" * 32, b"x" * 1000])
def test_a_replica_refuses_a_proof_made_without_the_secret(mac: bytes) -> None:
    replica = new_replica()
    replica.receive(hello())
    replica.outbox.take()
    arrival = replica.receive(CallerBatch(proof=Proof(mac=mac)).SerializeToString())
    assert arrival.refused
    assert refusal_of(replica).reason == Refusal.UNAUTHENTICATED


def test_the_replicas_own_proof_reflected_does_not_pass_as_the_callers() -> None:
    replica = new_replica()
    replica.receive(hello())
    challenge = ReplicaBatch.FromString(replica.outbox.take()).challenge
    arrival = replica.receive(CallerBatch(proof=Proof(mac=challenge.mac)).SerializeToString())
    assert arrival.refused


@pytest.mark.parametrize("changes", [{"epoch": 8}, {"nonce": b"s" * 16}, {"replica_id": "other"}])
def test_recorded_messages_of_a_caller_do_not_open_another_session(changes: dict) -> None:
    caller, replica = new_caller(), new_replica()
    first = caller.outbox.take()
    replica.receive(first)
    caller.receive(replica.outbox.take())
    second = caller.outbox.take()
    assert not replica.receive(second).refused

    victim = new_replica(**changes)
    refused = [victim.receive(message).refused for message in (first, second)]
    assert any(refused)
    assert victim.state is SessionState.CLOSED


def test_a_recorded_challenge_does_not_deceive_another_caller() -> None:
    caller, replica = new_caller(), new_replica()
    replica.receive(caller.outbox.take())
    recorded = replica.outbox.take()
    with pytest.raises(HandshakeRefused):
        new_caller(nonce=b"d" * 16).receive(recorded)


def test_a_call_for_another_replica_is_refused() -> None:
    replica = new_replica(replica_id="replica-2")
    assert replica.receive(hello()).refused
    refusal = refusal_of(replica)
    assert refusal.reason == Refusal.WRONG_REPLICA
    assert REPLICA_ID in refusal.message
    with pytest.raises(HandshakeRefused, match="WRONG_REPLICA"):
        new_caller().receive(ReplicaBatch(refusal=refusal).SerializeToString())


@pytest.mark.parametrize(
    ("low", "high", "agreed"),
    [(1, 1, 1), (1, 9, 1), (0, 1, 1), (2, 3, None), (0, 0, None), (2, 1, None)],
)
def test_the_newest_common_version_is_chosen_or_none(
    low: int, high: int, agreed: int | None
) -> None:
    assert common_version(low, high) == agreed
    replica = new_replica()
    arrival = replica.receive(hello(min_version=low, max_version=high))
    if agreed is None:
        assert arrival.refused
        refusal = refusal_of(replica)
        assert refusal.reason == Refusal.VERSION
        assert f"{low} to {high}" in refusal.message
    else:
        batch = ReplicaBatch.FromString(replica.outbox.take())
        assert batch.challenge.version == agreed


@pytest.mark.parametrize("version", [0, 2])
def test_a_caller_refuses_a_version_it_does_not_speak(version: int) -> None:
    caller = new_caller()
    challenge = Challenge(version=version, nonce=b"r" * 16, epoch=1, mac=b"")
    with pytest.raises(HandshakeRefused) as raised:
        caller.receive(ReplicaBatch(challenge=challenge).SerializeToString())
    assert raised.value.reason == Refusal.VERSION
    assert caller.state is SessionState.CLOSED


@pytest.mark.parametrize("size", [0, handshake.NONCE_BYTES - 1, handshake.MAX_NONCE_BYTES + 1])
def test_a_nonce_of_the_wrong_length_is_refused(size: int) -> None:
    replica = new_replica()
    assert replica.receive(hello(nonce=b"n" * size)).refused
    assert refusal_of(replica).reason == Refusal.PROTOCOL


def test_a_request_before_the_proof_is_never_read() -> None:
    request = {"templates": [Template(number=1)], "requests": [Request(id=1, template=1)]}
    replica = new_replica()
    arrival = replica.receive(CallerBatch.FromString(hello()).SerializeToString())
    assert arrival.requests == []
    arrival = replica.receive(CallerBatch(**request).SerializeToString())
    assert (arrival.refused, arrival.requests, replica.ongoing_ids) == (True, [], set())
    assert refusal_of(replica).reason == Refusal.PROTOCOL


def test_a_second_hello_is_refused() -> None:
    replica = new_replica()
    replica.receive(hello())
    assert replica.receive(hello()).refused


@pytest.mark.parametrize("batch", [ReplicaBatch(), ReplicaBatch(slot_free=True)])
def test_a_caller_takes_nothing_but_the_handshake_before_it_is_open(batch: ReplicaBatch) -> None:
    with pytest.raises(WireError):
        new_caller().receive(batch.SerializeToString())


def test_a_caller_takes_no_welcome_before_the_challenge() -> None:
    batch = ReplicaBatch()
    batch.welcome.max_ongoing_requests = 1
    with pytest.raises(WireError):
        new_caller().receive(batch.SerializeToString())


@pytest.mark.parametrize("reason", [*Refusal.Reason.values(), 99])
def test_every_refusal_is_told_with_its_text(reason: int) -> None:
    caller = new_caller()
    batch = ReplicaBatch(refusal=Refusal(reason=reason, message="because"))
    with pytest.raises(HandshakeRefused, match="because") as raised:
        caller.receive(batch.SerializeToString())
    assert raised.value.reason == reason
    assert caller.state is SessionState.CLOSED


@pytest.mark.parametrize("rounds_before", [0, 1, 2])
def test_a_drain_during_the_handshake_lets_no_request_start(rounds_before: int) -> None:
    caller, replica = new_caller(), new_replica()
    try:
        for rounds in range(3):
            if rounds == rounds_before:
                replica.drain()
            drain_into(caller.outbox, replica.receive)
            drain_into(replica.outbox, caller.receive)
    except HandshakeRefused:
        pass  # a refusal serves as well
    if caller.state is SessionState.OPEN:  # does not know that the replica drains
        caller.request("call", fields(b"payload"))
    for arrival in drain_into(caller.outbox, replica.receive):
        assert arrival.requests == []
    assert not replica.ongoing_ids
