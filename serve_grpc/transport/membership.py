"""Who may use a door that has no handshake: signed metadata, looked at before a byte is decoded.

`Call` and `CallStream` ask with the bytes of their request. Health and reflection are not ours; an
interceptor stands before them, and lets through whatever the server may ever offer beside them only
with a proof too.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from serve_grpc.protocol.handshake import CallVerifier
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.status import abort

__all__ = ["UNAUTHENTICATED", "Membership", "SignedMetadata"]

AUTHORIZATION_KEY = "authorization"
UNAUTHENTICATED = "this call carries no valid proof of membership in the Ray cluster"


class Membership:
    """Checks the proofs of calls to one replica.

    Args:
        secrets: Of the cluster.
        replica_id: Unique id of the replica.
    """

    def __init__(self, secrets: ClusterSecrets, replica_id: str) -> None:
        self._secrets = secrets
        self._verifier = CallVerifier(secrets.keyring, replica_id)

    def __repr__(self) -> str:
        return f"<Membership {self._secrets!r}>"

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
        await self._secrets.fresh()
        if self._verifier.verify(authorization, method, request, time.time()):
            return True
        # It may be made with a secret that is newer than what was read.
        return await self._secrets.reread() and self._verifier.verify(
            authorization, method, request, time.time()
        )


def _authorization(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == AUTHORIZATION_KEY and isinstance(value, str):
            return value
    return ""


class SignedMetadata(grpc.aio.ServerInterceptor):
    """Refuses calls of other services than ours without a proof. Runs once a call, not a message.

    Args:
        membership: Checks proofs.
        own_service: Our service, which checks them itself: it has the bytes that they cover.
    """

    def __init__(self, membership: Membership, own_service: str) -> None:
        self._membership = membership
        self._own_methods = f"/{own_service}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Go on to the service, or to a refusal."""
        method = handler_call_details.method
        if not method.startswith(self._own_methods):
            metadata = handler_call_details.invocation_metadata
            if not await self._membership.is_proven(metadata, method, b""):
                return grpc.unary_unary_rpc_method_handler(_refuse)
        return await continuation(handler_call_details)


async def _refuse(_: object, context: Any) -> None:
    await abort(context, grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED)
