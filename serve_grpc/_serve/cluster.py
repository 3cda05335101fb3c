"""Where this process runs, and the secrets its cluster shares.

They lie in the cluster's own key-value store (GCS), under one key: 32 random bytes, followed, once
it was rotated, by the 32 before them. One value, so that a reader sees either the old pair or the
new one. The first who asks makes it.
"""

from __future__ import annotations

import hmac
import os
import time

import ray
from ray._private import worker as ray_worker
from ray.experimental import internal_kv

from serve_grpc.protocol import handshake

__all__ = [
    "cluster_secret",
    "cluster_secrets",
    "node_address",
    "node_id",
    "rotate_secret",
    "session_directory",
    "sign_call",
]

_NAMESPACE = b"serve_grpc"
_KEY = b"session_secret"
SECRET_BYTES = 32


def node_address() -> str:
    """Ray's address of this node: a loopback one where Ray itself runs on loopback."""
    return str(ray.util.get_node_ip_address())


def node_id() -> str:
    """Ray's id of this node, in hex; "" while this process is in no cluster."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def session_directory() -> str:
    """Where Ray keeps what belongs to this cluster on this node: logs, sockets."""
    return str(ray_worker.global_worker.node.get_session_dir_path())


def cluster_secret() -> bytes:
    """The secret in use: 32 bytes that members of the Ray cluster can read, and nobody else."""
    return cluster_secrets()[0]


def cluster_secrets() -> tuple[bytes, ...]:
    """The secret in use and, once it was rotated, the one before it.

    Under `RAY_AUTH_MODE=token` Ray's token goes into them, so that a peer without it fails the
    handshake. Blocks for a round trip to Ray's key-value store.
    """
    # Mixed in, not sent: a replica tells by the proof alone whether the peer has both.
    stored = _stored()
    token = _ray_token()
    secrets = (stored[i : i + SECRET_BYTES] for i in range(0, len(stored), SECRET_BYTES))
    return tuple(hmac.digest(s, token, "sha256") if token else s for s in secrets)


def rotate_secret() -> None:
    """Give the Ray cluster a new secret; no call fails because of it.

    Open sessions go on. New ones, and plain calls, are made with the new secret; the one before it
    is good until the next rotation. So rotate twice to make a secret that has leaked worthless:
    replicas and callers read the new ones at the latest 5 seconds after.

    Raises:
        RuntimeError: This process is not connected to a Ray cluster.
    """
    if not ray.is_initialized():
        raise RuntimeError(
            "rotate_secret() needs a connection to the Ray cluster: ray.init() first"
        )
    # Read, then written, without a lock: of two rotations at the same moment one new secret is
    # lost. Peers that have read it find out at their next session (docs/decisions/0013).
    current = _stored()[:SECRET_BYTES]
    internal_kv._internal_kv_put(
        _KEY, os.urandom(SECRET_BYTES) + current, overwrite=True, namespace=_NAMESPACE
    )


def sign_call(replica_id: str, method: str, request: bytes = b"") -> tuple[tuple[str, str], ...]:
    """Metadata that prove one call of a plain gRPC client to be a cluster member's.

    Good once, for a minute, for this request at this replica. Reads the cluster's secret, which
    takes a round trip to Ray's key-value store; hands it to nobody.

    Args:
        replica_id: Ray Serve's unique id of the replica that is called.
        method: Full gRPC method, such as "/serve_grpc.v1.Replica/Call".
        request: The serialized `CallRequest`, the very bytes that are sent; nothing for health and
            reflection.

    Raises:
        RuntimeError: This process is not connected to a Ray cluster.
    """
    if not ray.is_initialized():
        raise RuntimeError("sign_call() needs a connection to the Ray cluster: ray.init() first")
    nonce = os.urandom(16).hex()
    # The wall clock: the replica may be on another machine, and allows for a minute.
    value = handshake.sign_call(cluster_secret(), method, replica_id, request, nonce, time.time())
    return (("authorization", value),)


def _stored() -> bytes:
    stored = internal_kv._internal_kv_get(_KEY, namespace=_NAMESPACE)
    if stored is None:
        # Put-if-absent, then read: of two processes that start together, both read the first one's.
        internal_kv._internal_kv_put(
            _KEY, os.urandom(SECRET_BYTES), overwrite=False, namespace=_NAMESPACE
        )
        stored = internal_kv._internal_kv_get(_KEY, namespace=_NAMESPACE)
    if stored is None or len(stored) not in (SECRET_BYTES, 2 * SECRET_BYTES):
        raise RuntimeError("the Ray cluster's key-value store did not keep the session secret")
    return bytes(stored)


def _ray_token() -> bytes:
    """Ray's authentication token, b"" where `RAY_AUTH_MODE` asks for none."""
    from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return b""
    token: str = AuthenticationTokenLoader.instance().get_raw_token()
    return token.encode()
