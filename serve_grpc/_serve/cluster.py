"""Where this process runs, and the secret its cluster shares."""

from __future__ import annotations

import functools
import hmac
import os

import ray
from ray.experimental import internal_kv

__all__ = ["cluster_secret", "node_address"]

_NAMESPACE = b"serve_grpc"
_KEY = b"session_secret"
SECRET_BYTES = 32


def node_address() -> str:
    """Ray's address of this node: a loopback one where Ray itself runs on loopback."""
    return str(ray.util.get_node_ip_address())


def cluster_secret() -> bytes:
    """32 random bytes that every member of the Ray cluster, and nobody else, can read.

    They live in the cluster's own key-value store (GCS) and are made by whoever asks first. Under
    `RAY_AUTH_MODE=token` Ray's token goes into them, so that a peer without it fails the
    handshake. Blocks for one round trip, once a process and cluster.
    """
    return _secret_of(ray.get_runtime_context().gcs_address)


@functools.cache
def _secret_of(_: str) -> bytes:
    # Put-if-absent, then read: of two processes that start together, both read the first one's.
    internal_kv._internal_kv_put(
        _KEY, os.urandom(SECRET_BYTES), overwrite=False, namespace=_NAMESPACE
    )
    secret = internal_kv._internal_kv_get(_KEY, namespace=_NAMESPACE)
    if secret is None or len(secret) != SECRET_BYTES:
        raise RuntimeError("the Ray cluster's key-value store did not keep the session secret")
    token = _ray_token()
    return hmac.digest(secret, token, "sha256") if token else bytes(secret)


def _ray_token() -> bytes:
    """Ray's authentication token, b"" where `RAY_AUTH_MODE` asks for none."""
    from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return b""
    token: str = AuthenticationTokenLoader.instance().get_raw_token()
    return token.encode()
