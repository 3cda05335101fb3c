"""The cluster's secrets in its key-value store: made once, rotated in pairs, mixed with a token."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
import ray
from ray import _raylet

from serve_grpc._serve import cluster
from serve_grpc.protocol import handshake
from tests.fakes.key_value_store import KeyValueStore

PLACE = (cluster._NAMESPACE, cluster._KEY)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> KeyValueStore:
    """The store of the cluster that this process is connected to; no token, whatever Ray's mode."""
    store = KeyValueStore()
    monkeypatch.setattr(_raylet, "get_authentication_mode", lambda: object())
    monkeypatch.setattr(cluster, "internal_kv", store)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return store


def test_the_first_who_asks_makes_it(store: KeyValueStore) -> None:
    (secret,) = cluster.cluster_secrets()
    assert len(secret) == 32
    assert len(set(secret)) > 1
    assert cluster.cluster_secrets() == (secret,)
    assert cluster.cluster_secret() == secret
    assert store.writes == [secret]


def test_who_comes_second_reads_the_first_ones(store: KeyValueStore) -> None:
    def other() -> None:
        store.stored.setdefault(PLACE, b"o" * 32)

    store.before_put = other
    assert cluster.cluster_secrets() == (b"o" * 32,)


def test_a_rotation_keeps_the_one_before_and_no_more() -> None:
    (first,) = cluster.cluster_secrets()
    cluster.rotate_secret()
    second, before = cluster.cluster_secrets()
    assert before == first
    assert second not in (first, b"")
    cluster.rotate_secret()
    third, before = cluster.cluster_secrets()
    assert before == second
    assert first not in (third, before)


@pytest.mark.parametrize("stored", [b"", b"short", b"x" * 33, b"x" * 96])
def test_something_else_in_its_place_is_refused(store: KeyValueStore, stored: bytes) -> None:
    store.stored[PLACE] = stored
    with pytest.raises(RuntimeError, match="did not keep the session secret"):
        cluster.cluster_secrets()


def test_a_store_that_forgets_is_refused(store: KeyValueStore) -> None:
    store.forgets = True
    with pytest.raises(RuntimeError, match="did not keep the session secret"):
        cluster.cluster_secret()


def test_without_a_token_mode_no_token_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_raylet, "get_authentication_mode", lambda: object())
    monkeypatch.setattr(_raylet, "AuthenticationTokenLoader", None)
    assert cluster._ray_token() == b""


def test_rays_token_goes_into_each_of_them(
    monkeypatch: pytest.MonkeyPatch, store: KeyValueStore
) -> None:
    class Loader:
        @staticmethod
        def instance() -> Any:
            return Loader

        @staticmethod
        def get_raw_token() -> str:
            return "the token"

    monkeypatch.setattr(
        _raylet, "get_authentication_mode", lambda: _raylet.AuthenticationMode.TOKEN
    )
    monkeypatch.setattr(_raylet, "AuthenticationTokenLoader", Loader)
    store.stored[PLACE] = b"n" * 32 + b"o" * 32
    assert cluster.cluster_secrets() == tuple(
        hmac.digest(secret * 32, b"the token", "sha256") for secret in (b"n", b"o")
    )


def test_a_signed_call_is_good_for_its_request_at_its_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(handshake, "sign_call", lambda *args: seen.append(args) or "signed")
    assert cluster.sign_call("replica", "/method", b"request") == (("authorization", "signed"),)
    cluster.sign_call("replica", "/method", b"request")
    (first, second) = seen
    assert first[:4] == (cluster.cluster_secret(), "/method", "replica", b"request")
    assert first[4] != second[4], "a call is good once"


@pytest.mark.parametrize(
    ("function", "args"), [(cluster.rotate_secret, ()), (cluster.sign_call, ("replica", "/m"))]
)
def test_without_a_cluster_they_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, function: Any, args: tuple[str, ...]
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=rf"{function.__name__}\(\) needs .*ray\.init\(\) first"):
        function(*args)
