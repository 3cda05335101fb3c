"""Starts the data plane inside a Serve replica, and ends it with the replica.

Called from the public `record_replica_metadata` hook, which Serve runs on the user's loop after
the constructor and before the replica takes traffic. The server runs on the replica's main loop,
so that blocking user code, which has a loop of its own unless
`RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0`, delays neither rejections nor heartbeats.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from serve_grpc._serve.cluster import cluster_secrets, node_address
from serve_grpc._serve.replicas import ReplicaAccess, current_replica
from serve_grpc._serve.routers import Endpoint
from serve_grpc.allow_list import PROCESS_LIST, AllowList, check_process_list, narrowed
from serve_grpc.config import LOGGER_NAME, settings
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.replica.reporting import ReplicaReporter
from serve_grpc.threads import in_thread
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.server import ReplicaServer

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
    replica = current_replica()
    starting = _start(replica, _allowed_here(serializers))
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


async def _start(replica: ReplicaAccess, serializers: AllowList) -> Endpoint:
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
    reporter = ReplicaReporter(replica, dispatcher, server)
    reporter.start()

    async def stop() -> None:
        await server.stop(CLOSE_GRACE_S)
        reporter.stop()

    replica.around_shutdown(server.drain, stop)
    logger.info("serve_grpc listens on %s:%d", host, port, extra={"log_to_stderr": False})
    # With SERVE_GRPC_BIND_HOST=0.0.0.0 or :: callers still need an address that names this node.
    address = node_address() if host in ("0.0.0.0", "::") else host
    address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return Endpoint(address, replica.actor_id, serializers)
