"""Proofs of the plain door: a call passes once, now, at its replica, as it was signed."""

from __future__ import annotations

import pytest

from serve_grpc.protocol import handshake
from serve_grpc.protocol.handshake import CALL_WINDOW_S, CallVerifier, sign_call
from serve_grpc.protocol.keyring import Keyring

SECRET = b"s" * 32
METHOD = "/serve_grpc.v1.Replica/Call"
NOW_S = 1_700_000_000.0


def signed(**changes: object) -> str:
    values = {
        "secret": SECRET,
        "method": METHOD,
        "replica_id": "r",
        "request": b"request",
        "nonce": "nonce",
        "now_s": NOW_S,
    }
    return sign_call(**{**values, **changes})


@pytest.fixture
def verifier() -> CallVerifier:
    return CallVerifier(Keyring((SECRET,)), "r")


def test_a_signed_call_passes(verifier: CallVerifier) -> None:
    assert verifier.verify(signed(), METHOD, b"request", NOW_S)


def test_the_same_proof_does_not_pass_twice(verifier: CallVerifier) -> None:
    assert verifier.verify(signed(), METHOD, b"request", NOW_S)
    assert not verifier.verify(signed(), METHOD, b"request", NOW_S)
    assert not verifier.verify(signed(), METHOD, b"request", NOW_S + 1)


def test_another_nonce_passes(verifier: CallVerifier) -> None:
    for nonce in ("a", "b", "c"):
        assert verifier.verify(signed(nonce=nonce), METHOD, b"request", NOW_S)


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": b"t" * 32},
        {"secret": b""},
        {"method": "/serve_grpc.v1.Replica/CallStream"},
        {"replica_id": "other"},
        {"request": b"request "},
        {"request": b""},
    ],
    ids=str,
)
def test_a_proof_of_anything_else_does_not_pass(verifier: CallVerifier, changes: dict) -> None:
    assert not verifier.verify(signed(**changes), METHOD, b"request", NOW_S)


@pytest.mark.parametrize("field", [1, 2, 3])
def test_no_signed_field_can_be_changed(verifier: CallVerifier, field: int) -> None:
    parts = signed().split(" ")
    parts[field] = "1" + parts[field][1:] if parts[field][0] != "1" else "2" + parts[field][1:]
    assert not verifier.verify(" ".join(parts), METHOD, b"request", NOW_S)


@pytest.mark.parametrize("offset_s", [0.0, CALL_WINDOW_S, -CALL_WINDOW_S])
def test_clocks_may_differ_by_the_window(verifier: CallVerifier, offset_s: float) -> None:
    assert verifier.verify(signed(now_s=NOW_S + offset_s), METHOD, b"request", NOW_S)


@pytest.mark.parametrize("offset_s", [CALL_WINDOW_S + 1, -CALL_WINDOW_S - 1, 1e9])
def test_a_proof_from_outside_the_window_does_not_pass(
    verifier: CallVerifier, offset_s: float
) -> None:
    assert not verifier.verify(signed(now_s=NOW_S + offset_s), METHOD, b"request", NOW_S)


def test_a_nonce_is_remembered_for_as_long_as_its_proof_could_pass(verifier: CallVerifier) -> None:
    proof = signed(now_s=NOW_S + CALL_WINDOW_S)  # by a clock that is ahead
    assert verifier.verify(proof, METHOD, b"request", NOW_S)
    for age_s in range(0, 3 * int(CALL_WINDOW_S), 7):
        now_s = NOW_S + age_s
        assert verifier.verify(signed(nonce=f"{age_s}", now_s=now_s), METHOD, b"request", now_s)
        assert not verifier.verify(proof, METHOD, b"request", now_s)


def test_old_nonces_are_forgotten(verifier: CallVerifier) -> None:
    for second in range(0, 1000, 10):
        now_s = NOW_S + second
        assert verifier.verify(signed(nonce=f"{second}", now_s=now_s), METHOD, b"request", now_s)
    assert len(verifier._seen) <= 2 * CALL_WINDOW_S / 10 + 1


def test_memory_of_nonces_is_bounded(
    verifier: CallVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "MAX_REMEMBERED_NONCES", 10)
    for number in range(100):
        assert verifier.verify(signed(nonce=f"{number}"), METHOD, b"request", NOW_S)
    assert len(verifier._seen) == 10


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        " ",
        "Bearer token",
        "serve-grpc-v1",
        "serve-grpc-v1   ",
        "serve-grpc-v1 now nonce mac",
        "serve-grpc-v1 nan nonce " + "0" * 64,
        "serve-grpc-v1 1.0 nonce mac extra",
        "serve-grpc-v1 1.0 nöncé mäc",
        "x" * 100_000,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_anything_else_is_refused_without_an_error(
    verifier: CallVerifier, authorization: str
) -> None:
    assert not verifier.verify(authorization, METHOD, b"request", NOW_S)


def test_a_refused_proof_uses_up_no_nonce(verifier: CallVerifier) -> None:
    assert not verifier.verify(signed(secret=b"t"), METHOD, b"request", NOW_S)
    assert not verifier.verify(signed(), METHOD, b"other", NOW_S)
    assert verifier.verify(signed(), METHOD, b"request", NOW_S)
