"""Who may use a door that has no handshake: signed metadata, looked at before a byte is decoded.

`Call` and `CallStream` ask with the bytes of their request; health, reflection and whatever the
server may ever offer beside them with none (`carriers.grpc.interceptors.SignedMetadata`).
"""

from __future__ import annotations

import time
from typing import Any

from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.protocol.handshake import CallVerifier

__all__ = ["UNAUTHENTICATED", "SignedCalls"]

AUTHORIZATION_KEY = "authorization"  # in lower case, as all keys in gRPC
UNAUTHENTICATED = "this call carries no valid proof of membership in the Ray cluster"


class SignedCalls:
    """Checks the proofs of calls to one replica.

    Args:
        secrets: Of the cluster.
        replica_id: Unique id of the replica.
    """

    def __init__(self, secrets: ClusterSecrets, replica_id: str) -> None:
        self._secrets = secrets
        self._verifier = CallVerifier(secrets.keyring, replica_id)

    def __repr__(self) -> str:
        return f"<SignedCalls {self._secrets!r}>"

    async def is_proven(self, metadata: Any, method: str, request: bytes) -> bool:
        """Whether the metadata of a call prove that a member made it, now and once.

        Args:
            metadata: As gRPC gives them, None for none.
            method: Full gRPC method.
            request: The serialized request; b"" where the method streams its requests.
        """
        authorization = _authorization(metadata)
        if not authorization:
            return False
        # The secret may have been rotated out since it was read; then the proof is worth nothing.
        await self._secrets.fresh()
        if self._verifier.verify(authorization, method, request, time.time()):
            return True
        # It may be made with a secret that is newer than what was read. The first look left nothing
        # behind: a nonce is remembered only once its mac holds.
        return await self._secrets.reread() and self._verifier.verify(
            authorization, method, request, time.time()
        )


def _authorization(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == AUTHORIZATION_KEY and isinstance(value, str):
            return value
    return ""
