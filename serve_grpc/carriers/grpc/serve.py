"""A replica's gRPC server: the doors and who may use them.

Bytes come in raw on every door of ours, so of an unproven peer nothing but its proof is decoded:
sessions prove themselves in their handshake, everything else with signed metadata
(`handshake.sign_call`). What requests mean is the dispatcher's business.
"""

from __future__ import annotations

import logging
import random
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serve_grpc._generated.replica_pb2 import DESCRIPTOR
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.cut_off import CutOff
from serve_grpc.carriers.grpc.accepted import ServerLink
from serve_grpc.carriers.grpc.credentials import bind, largest_message, server_options
from serve_grpc.carriers.grpc.interceptors import Doors, SignedMetadata, open_server
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.carriers.grpc.plain_door import PlainDispatcher, PlainDoor
from serve_grpc.carriers.grpc.status import abort
from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.replica_pump import SessionDispatcher
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.entrance.signed_calls import UNAUTHENTICATED, SignedCalls

__all__ = ["Dispatcher", "PlainCall", "ReplicaServer"]

logger = logging.getLogger(LOGGER_NAME)

SERVICE = DESCRIPTOR.services_by_name["Replica"].full_name
MAX_OTHER_CALLS = 2048
"""Calls on their way through all doors beside sessions, those of unproven peers among them."""


class Dispatcher(SessionDispatcher, PlainDispatcher, Protocol):
    """Who decides what requests mean, those of the plain door too. On the server's loop."""


class ReplicaServer:
    """The server of one replica. Lives on the loop it is started on.

    Args:
        replica_id: Unique id of the replica.
        secrets: Of the cluster.
        settings: Ports, limits, TLS.
        dispatcher: Who handles requests.

    Attributes:
        host: Serves the links of its sessions.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        secrets: ClusterSecrets,
        settings: Settings,
        dispatcher: Dispatcher,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._signed_calls = SignedCalls(secrets, replica_id)
        self.host = SessionHost(
            replica_id=replica_id,
            secrets=secrets,
            settings=settings,
            dispatcher=dispatcher,
            largest_message=largest_message(settings),
        )
        self._server = open_server(
            Doors(
                SERVICE,
                session=grpc.stream_stream_rpc_method_handler(self._session),
                read=self._read,
            ),
            SignedMetadata(self._signed_calls, SERVICE),
            options=server_options(settings),
            maximum_concurrent_rpcs=settings.max_connections + MAX_OTHER_CALLS,
        )
        self._health = health.aio.HealthServicer()
        self._add_doors()

    def __repr__(self) -> str:
        return f"<ReplicaServer {self.host!r}>"

    @property
    def sessions(self) -> int:
        """How many are open."""
        return self.host.sessions

    @property
    def counters(self) -> Counters:
        """What went over the sessions until now."""
        return self.host.counters

    def _add_doors(self) -> None:
        handlers = PlainDoor(self._dispatcher, self._settings).handlers()
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self, host: str) -> int:
        """Listen on `host`; returns the port.

        Raises:
            RuntimeError: No port of the configured range is free, or TLS files are missing.
        """
        port = self._bind(f"[{host}]" if ":" in host else host)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        return port

    def _bind(self, host: str) -> int:
        low, high = self._settings.min_port, self._settings.max_port
        if not low:
            return bind(self._server, f"{host}:0", self._settings)
        ports = list(range(low, high + 1))
        # The replicas of a node start together, and would all try the same port first.
        random.shuffle(ports)
        for port in ports:
            try:
                return bind(self._server, f"{host}:{port}", self._settings)
            except RuntimeError as error:
                if "address" not in str(error).lower():
                    raise
        raise RuntimeError(
            f"no free port between SERVE_GRPC_MIN_PORT={low} and SERVE_GRPC_MAX_PORT={high} "
            f"on {host}"
        )

    async def drain(self) -> None:
        """Tell every caller to go elsewhere; running requests go on."""
        self.host.drain()
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Write what is queued, then close every connection within `grace_s` seconds."""
        await self.host.flush(grace_s)
        # What is queued is written by now; a session would use up any grace, for it never ends.
        await self._server.stop(0)

    # ------------------------------------------------------------ the doors

    async def _session(self, _: object, context: Any) -> None:
        link = ServerLink(context)
        try:
            await self.host.serve(link)
        finally:
            # Last, for gRPC ends the call with what leaves the handler.
            link.end_handler()

    async def _read(self, context: Any, method: str) -> bytes:
        # By hand, so that a request is read only when there is room for it.
        link = ServerLink(context)
        try:
            async with CutOff(link) as cut_off:
                peer = await self.host.unproven.enter(cut_off)
                try:
                    data = await context.read()
                finally:
                    peer.leave()
        finally:
            link.end_handler()
        if data is grpc.aio.EOF:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a call has one request")
        if not await self._signed_calls.is_proven(context.invocation_metadata(), method, data):
            logger.debug("a call of %s by %s is not proven", method, context.peer())
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED)
        return bytes(data)
