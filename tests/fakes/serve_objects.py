"""Serve's objects as `serve_grpc/_serve` and the top-level modules see them, without a Ray.

Each has the attributes that are read, and keeps what it is told. What can be had as the real thing
without a cluster (metadata, infos, formatters) is not here: tests take it from Serve.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

__all__ = ["Metric", "new_replica", "new_request_router", "new_serve_router"]


class Metric:
    """A counter, gauge or histogram of Ray's, by its constructor; keeps what it is told."""

    def __init__(
        self,
        name: str = "",
        description: str = "",
        tag_keys: tuple[str, ...] = (),
        boundaries: list[float] | None = None,
    ) -> None:
        self.name, self.tag_keys = name, tag_keys
        self.default_tags: dict[str, str] = {}
        self.told: list[tuple[float, dict[str, str] | None]] = []

    def set_default_tags(self, tags: dict[str, str]) -> Metric:
        self.default_tags = tags
        return self

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        self.told.append((value, tags))

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.told.append((value, tags))

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.told.append((value, tags))

    @property
    def values(self) -> list[float]:
        """Without their tags."""
        return [value for value, _ in self.told]


def new_request_router() -> Any:
    """Serve's request router of a deployment: its replicas, its gauges, and who makes a view of a
    replica (which is `new_replica` of the info)."""
    return SimpleNamespace(
        curr_replicas={},
        _create_replica_wrapper_func=new_replica,
        queue_wait_time_ms_histogram=Metric(),
        num_routing_tasks_gauge=Metric(),
        num_routing_tasks_in_backoff_gauge=Metric(),
        router_queue_len_gauge=Metric(),
        curr_num_routing_tasks=0,
        num_routing_tasks_in_backoff=0,
    )


def new_serve_router(loop: asyncio.AbstractEventLoop, request_router: Any) -> Any:
    """Serve's `AsyncioRouter` with that request router, None while it has none."""
    return SimpleNamespace(
        _event_loop=loop,
        _request_router=request_router,
        _objref_resolution_latency_ms=Metric(),
    )


def new_replica(info: Any) -> Any:
    """Serve's view of a running replica, `RunningReplica`."""
    return SimpleNamespace(
        _replica_info=info,
        replica_id=info.replica_id,
        actor_id=SimpleNamespace(hex=lambda: "actor"),
        stub=None,
        _grpc_replica_wrapper=None,
    )
