"""Ray Serve's side of `RouterAdapter` and `ReplicaAdapter`, without a Ray cluster.

Real, because Serve's own constructors make them: the metrics managers with their counters and
gauges, the semaphore of `max_ongoing_requests`, the replica infos, the handlers of the access log.
Stand-ins, with the attributes that `serve_grpc/_serve` reads and no more: the router, the replica
and the wrapper of the user's class that hold them. Nothing is exported without a cluster, so what
Serve's background tasks cost there is not in these numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RunningReplicaInfo,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve._private.replica import ReplicaMetricsManager
from ray.serve._private.router import RouterMetricsManager
from ray.serve._private.utils import Semaphore
from ray.serve.schema import LoggingConfig
from ray.util import metrics

from serve_grpc._serve.replica_facts import Endpoint
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc._serve.routers import RouterAdapter

__all__ = ["ROUTE", "cancel_tasks", "new_replica_adapter", "new_router", "running", "serve_log"]

DEPLOYMENT = DeploymentID(name="Echo", app_name="default")
ROUTE = "/echo"


def running(count: int, *, max_ongoing_requests: int) -> list[RunningReplicaInfo]:
    """What the controller says of `count` replicas with our endpoint."""
    return [
        RunningReplicaInfo(
            replica_id=ReplicaID(f"replica-{number}", DEPLOYMENT),
            node_id=f"node-{number // 8}",
            node_ip="127.0.0.1",
            availability_zone=None,
            actor_name=f"actor-{number}",
            max_ongoing_requests=max_ongoing_requests,
            replica_metadata=Endpoint("127.0.0.1:1", f"actor-{number}").as_metadata(),
        )
        for number in range(count)
    ]


def new_router() -> tuple[RouterAdapter, Any]:
    """Adapter to a configured router that knows no replica yet, and its metrics manager.

    On the running loop. Replicas are told with the manager's `_update_running_replicas`.
    """
    loop = asyncio.get_running_loop()
    keys = ("deployment", "application", "handle", "actor_id")
    manager = RouterMetricsManager(
        DEPLOYMENT,
        "handle",
        "actor",
        DeploymentHandleSource.REPLICA,
        None,
        metrics.Counter("serve_num_router_requests", tag_keys=(*keys, "route")),
        metrics.Gauge("serve_deployment_queued_queries", tag_keys=keys),
        metrics.Gauge("serve_num_ongoing_requests_at_replicas", tag_keys=keys),
        loop,
    )
    manager.update_deployment_config(DeploymentConfig(), 0)
    handle_counter = metrics.Counter(
        "serve_handle_request_counter", tag_keys=("handle", "deployment", "route", "application")
    ).set_default_tags({"handle": "handle", "deployment": DEPLOYMENT.name})
    router = SimpleNamespace(
        _metrics_manager=manager,
        _event_loop=loop,
        deployment_id=DEPLOYMENT,
        _self_actor_id="actor",
        _objref_resolution_latency_ms=metrics.Histogram(
            "serve_router_args_resolution_latency_ms", boundaries=[1]
        ),
        _node_id="node-0",
        _prefer_local_node_routing=False,
        _availability_zone=None,
        _request_router=None,
        _running_replicas=None,
        _request_router_class=None,
        _deployment_available=True,
        _initial_backoff_s=None,
        _backoff_multiplier=None,
        _max_backoff_s=None,
    )
    return _Adapter(router, handle_counter), manager


class _Adapter(RouterAdapter):
    """There is no cluster that this process could have left."""

    @property
    def is_serve_gone(self) -> bool:
        return False


def new_replica_adapter(
    method: Callable[..., Awaitable[Any]], *, max_ongoing_requests: int
) -> ReplicaAdapter:
    """Adapter to a replica whose only method is `method`, all of it on the running loop."""
    loop = asyncio.get_running_loop()
    replica_id = ReplicaID("replica-0", DEPLOYMENT)
    with mock.patch("ray.get_actor"):  # the controller, which the manager would push to
        manager = ReplicaMetricsManager(
            replica_id=replica_id,
            event_loop=loop,
            autoscaling_config=None,
            ingress=False,
            max_ongoing_requests=max_ongoing_requests,
        )
    user_code = SimpleNamespace(
        event_loop=loop,
        _run_sync_methods_in_threadpool=True,
        get_user_method_info=lambda name: SimpleNamespace(name=name, callable=method),
    )
    replica = SimpleNamespace(
        _user_callable_wrapper=user_code,
        _metrics_manager=manager,
        _semaphore=Semaphore(lambda: max_ongoing_requests),
        _event_loop=loop,
        _replica_id=replica_id,
        _deployment_id=DEPLOYMENT,
        max_ongoing_requests=max_ongoing_requests,
        get_num_ongoing_requests=manager.get_num_ongoing_requests,
        _shutting_down=False,
        _quiescing=False,
        _ingress=False,
        _access_log_context={"skip_context_filter": True, "serve_access_log": True},
    )
    return ReplicaAdapter(replica, "actor")


@contextlib.contextmanager
def serve_log(directory: Path) -> Iterator[None]:
    """Serve's logger as a replica has it: lines go to a file in `directory`, and to stderr.

    This process's stderr is the terminal of the benchmark; /dev/null takes its place.
    """
    logger = logging.getLogger(SERVE_LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stderr(nowhere):
            configure_component_logger(
                component_name=DEPLOYMENT.name,
                component_id="replica-0",
                logging_config=LoggingConfig(logs_dir=str(directory)),
                max_bytes=100 * 1024 * 1024,
                backup_count=1,
            )
        try:
            yield
        finally:
            for handler in logger.handlers:
                handler.close()
            logger.handlers[:], logger.propagate, logger.level = before


async def cancel_tasks() -> None:
    """End every other task of the running loop: Serve's managers have tasks that never end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
