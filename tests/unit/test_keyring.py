"""Two secrets at once, while a rotation goes round: who is heard, and what never shows."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import CallerBatch, Refusal, ReplicaBatch
from serve_grpc.protocol.handshake import CallVerifier, SessionState, sign_call
from serve_grpc.protocol.keyring import KEY_ID_BYTES, Keyring, key_id
from tests.unit.sessions import new_caller, new_replica, shake_hands

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
NOW_S = 1_000_000.0


def test_the_first_secret_is_the_current_one_and_all_are_found_by_their_ids() -> None:
    keyring = Keyring((NEW, OLD))
    assert (keyring.current, list(keyring), len(keyring)) == (NEW, [NEW, OLD], 2)
    assert [keyring.find(key_id(s)) for s in (NEW, OLD, OTHER)] == [NEW, OLD, None]
    assert keyring.find(b"") == NEW
    assert Keyring().find(b"") is None


def test_a_keyring_that_is_replaced_holds_the_old_ones_no_longer() -> None:
    keyring = Keyring((OLD,))
    keyring.replace((NEW,))
    assert list(keyring) == [NEW]
    assert keyring.find(key_id(OLD)) is None


def test_neither_the_id_nor_what_is_shown_tells_the_secret() -> None:
    assert len(key_id(OLD)) == KEY_ID_BYTES
    assert key_id(OLD) not in OLD
    assert "o" * 4 not in repr(Keyring((OLD,)))


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_a_caller_with_either_secret_gets_a_session(secret: bytes) -> None:
    caller, replica = new_caller(secret=secret), new_replica(keyring=Keyring((NEW, OLD)))
    shake_hands(caller, replica)
    assert (caller.state, replica.state) == (SessionState.OPEN, SessionState.OPEN)


def test_a_caller_with_a_newer_secret_is_heard_once_the_replica_has_read_it() -> None:
    keyring = Keyring((OLD,))
    caller, replica = new_caller(secret=NEW), new_replica(keyring=keyring)
    arrival = replica.receive(caller.outbox.take())
    assert (arrival.unknown_key, arrival.refused, bool(replica.outbox)) == (True, False, False)
    keyring.replace((NEW, OLD))
    assert not replica.hear_hello_again().refused
    caller.receive(replica.outbox.take())
    replica.receive(caller.outbox.take())
    assert replica.state is SessionState.OPEN


def test_a_caller_whose_secret_is_found_nowhere_is_refused() -> None:
    caller, replica = new_caller(secret=OTHER), new_replica(keyring=Keyring((NEW, OLD)))
    assert replica.receive(caller.outbox.take()).unknown_key
    assert replica.hear_hello_again().refused
    refusal = ReplicaBatch.FromString(replica.outbox.take()).refusal
    assert refusal.reason == Refusal.UNAUTHENTICATED
    assert key_id(NEW).hex() not in refusal.message


def test_what_follows_a_hello_of_an_unknown_secret_is_not_read() -> None:
    caller, replica = new_caller(secret=OTHER), new_replica(keyring=Keyring((NEW,)))
    hello = caller.outbox.take()
    assert replica.receive(hello).unknown_key
    assert replica.receive(hello).refused
    assert replica.state is SessionState.CLOSED


def test_a_session_that_is_open_stays_open_when_its_secret_is_gone() -> None:
    keyring = Keyring((OLD,))
    caller, replica = new_caller(secret=OLD), new_replica(keyring=keyring)
    shake_hands(caller, replica)
    keyring.replace((NEW,))
    caller.ping(1)
    replica.receive(caller.outbox.take())
    assert replica.state is SessionState.OPEN


def test_the_secret_of_the_hello_is_that_of_the_proof() -> None:
    """A keyring that changes between the two does not let another one in."""
    keyring = Keyring((OLD,))
    caller, replica = new_caller(secret=OLD), new_replica(keyring=keyring)
    replica.receive(caller.outbox.take())
    caller.receive(replica.outbox.take())
    keyring.replace((NEW,))
    proof = CallerBatch.FromString(caller.outbox.take())
    assert not replica.receive(proof.SerializeToString()).refused


@pytest.mark.parametrize(("secret", "is_member"), [(OLD, True), (NEW, True), (OTHER, False)])
def test_a_plain_call_is_proven_with_either_secret(secret: bytes, is_member: bool) -> None:
    verifier = CallVerifier(Keyring((NEW, OLD)), "r")
    authorization = sign_call(secret, "/m", "r", b"request", "nonce", NOW_S)
    assert verifier.verify(authorization, "/m", b"request", NOW_S) is is_member
    assert not verifier.verify(authorization, "/m", b"request", NOW_S)  # a nonce is good once


def test_without_a_secret_nothing_is_proven() -> None:
    authorization = sign_call(b"", "/m", "r", b"", "nonce", NOW_S)
    assert not CallVerifier(Keyring(), "r").verify(authorization, "/m", b"", NOW_S)
