"""Starts the data plane inside a Serve replica, and ends it with the replica.

Called from the public `record_replica_metadata` hook, which Serve runs on the user's loop after
the constructor and before the replica takes traffic. The server runs on the replica's main loop,
so that blocking user code, which has a loop of its own unless
`RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0`, delays neither rejections nor heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from serve_grpc._serve.cluster import cluster_secrets, node_address, session_directory
from serve_grpc._serve.replica_facts import Endpoint
from serve_grpc._serve.replicas import ReplicaAdapter, current_replica
from serve_grpc.allow_list import PROCESS_LIST, AllowList, check_process_list, narrowed
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.local.paths import open_directory, published, remove_leftovers
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import LOGGER_NAME, settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.replica.replica_metrics import ReplicaMetrics
from serve_grpc.storing import wait_released
from serve_grpc.threads import in_thread

__all__ = ["publish_endpoint"]

logger = logging.getLogger(LOGGER_NAME)

CLOSE_GRACE_S = 5.0
"""For replies that were queued when the last request ended."""


async def publish_endpoint(serializers: AllowList) -> dict[str, Any]:
    """Start this replica's server; returns the metadata that tells callers of it.

    Args:
        serializers: The only ones that the deployment takes; None for all.

    Raises:
        RuntimeError: This process runs no replica, no port is free, or TLS files are missing; the
            replica then fails to start, with this error in Serve's status.
        ValueError: The same for a process that allows none of the deployment's serializers.
    """
    # Serve awaits the hook on the user's loop; the server belongs to the replica's own.
    replica = current_replica()
    starting = _start(replica, _allowed_here(serializers))
    # One loop with `RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0`.
    if asyncio.get_running_loop() is replica.main_loop:
        endpoint = await starting
    else:
        endpoint = await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(starting, replica.main_loop)
        )
    return endpoint.as_metadata()


def _allowed_here(serializers: AllowList) -> AllowList:
    check_process_list(settings.serializers)
    allowed = narrowed(serializers, settings.serializers)
    if allowed is not None and not allowed:
        raise ValueError(f"{PROCESS_LIST} allows none of the deployment's serializers")
    return allowed


async def _start(replica: ReplicaAdapter, serializers: AllowList) -> Endpoint:
    known = await in_thread(cluster_secrets)
    dispatcher = ReplicaDispatcher(replica, settings, serializers)
    server = ReplicaServer(
        replica_id=replica.replica_id,
        secrets=ClusterSecrets(cluster_secrets, known),
        settings=settings,
        dispatcher=dispatcher,
    )
    host = settings.bind_host or node_address()
    port = await server.start(host)
    lane = _Lane(server.host)
    lane.start()
    reporter = ReplicaMetrics(replica, dispatcher, server)
    reporter.start()

    async def stop() -> None:
        await wait_released(CLOSE_GRACE_S)  # results that callers are about to fetch
        # First: it writes what is queued, on the sessions of the lane as well.
        await server.stop(CLOSE_GRACE_S)
        await lane.stop()
        reporter.stop()

    # Callers are told to go elsewhere before Serve waits for running requests, and the server ends
    # after it, so that the last reply leaves (`perform_graceful_shutdown` of Serve's replica).
    replica.around_shutdown(server.drain, stop)
    local = f" and {lane.path}" if lane.path else ""
    logger.info("serve_grpc listens on %s:%d%s", host, port, local, extra={"log_to_stderr": False})
    # With SERVE_GRPC_BIND_HOST=0.0.0.0 or :: callers still need an address that names this node.
    address = node_address() if host in ("0.0.0.0", "::") else host
    address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return Endpoint(address, replica.actor_id, serializers, lane.path)


class _Lane:
    """The replica's end of the local lane, if it can be had.

    Attributes:
        path: Of the socket, "" if there is none.
    """

    def __init__(self, host: SessionHost) -> None:
        self._server = LocalServer(host, settings)
        self.path = ""

    def start(self) -> None:
        """Listen if the settings allow it; without the lane callers on this node use gRPC."""
        if not settings.local:
            return
        try:
            directory = open_directory(session_directory())
            remove_leftovers(directory)
            self.path = published(directory, self._server.start)
        except OSError as error:
            logger.warning("this replica has no local lane, its callers use gRPC: %s", error)

    async def stop(self) -> None:
        """Let go of the socket, and end what sessions are left on it."""
        if self.path:
            # It is not the name that the server bound (`published`), so it is removed here.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            await self._server.stop()
