"""Serve's real `AsyncioRouter` on the running loop, without a Ray cluster.

Real: the router, its request router, metrics manager and long-poll clients, and the lists, which
come out of a pickle as from the controller. Stand-ins: a controller that never answers, and Ray's
table of named actors, which counts who looks into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentTargetInfo,
    RunningReplicaInfo,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.long_poll import LongPollNamespace
from ray.serve._private.router import CurrentLoopRouter
from ray.util import metrics

from bench.stand_ins.serve import DEPLOYMENT, cancel_tasks
from serve_grpc._serve.replica_lists import lists_of
from serve_grpc._serve.routers import RouterAdapter

__all__ = ["Actors", "RealRouter", "adapter_of", "as_pickle", "as_sent", "real_router"]


class Actors:
    """Ray's table of named actors.

    Args:
        cost_s: How long a look-up takes, in the thread that makes it.

    Attributes:
        looked_up: Names, in order.
        missing: Names that nobody has any more.
        threads: Those that looked up.
        asked: Names of actors that were asked for their queue length.
    """

    def __init__(self, cost_s: float = 0.0) -> None:
        self._cost_s = cost_s
        self.looked_up: list[str] = []
        self.missing: set[str] = set()
        self.threads: set[int] = set()
        self.asked: list[str] = []

    def get(self, name: str, namespace: str | None = None) -> Any:
        """As `ray.get_actor`."""
        if self._cost_s:
            time.sleep(self._cost_s)
        self.looked_up.append(name)
        self.threads.add(threading.get_ident())
        if name in self.missing:
            raise ValueError(f"Failed to look up actor with name '{name}'.")
        return SimpleNamespace(
            _actor_id=SimpleNamespace(hex=lambda: f"id of {name}"),
            get_num_ongoing_requests=_Method(functools.partial(self._ask, name)),
            reserve_slot=_Method(lambda *_: (True, 1)),
            release_slot=_Method(lambda *_: (True, 0)),
        )

    def _ask(self, name: str) -> int:
        self.asked.append(name)
        return 0


class _Method:
    """One of an actor, answered in the next turn of the loop."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(self._answer(*args))
        return future


class _Controller:
    """Never answers."""

    def __init__(self) -> None:
        ref = SimpleNamespace(_on_completed=lambda _: None)
        self.listen_for_change = SimpleNamespace(remote=lambda _: ref)


class RealRouter:
    """A router of Serve, with what the controller would tell it.

    Attributes:
        serve_router: As a handle has it.
        asyncio_router: The router in it.
        actors: Whom it can look up.
    """

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self.serve_router = CurrentLoopRouter(
            controller_handle=_Controller(),
            deployment_id=DEPLOYMENT,
            handle_id="handle",
            self_actor_id="",
            handle_source=DeploymentHandleSource.UNKNOWN,
            enable_strict_max_ongoing_requests=True,
            node_id="node-0",
            availability_zone=None,
            prefer_local_node_routing=False,
        )
        self.asyncio_router: Any = self.serve_router._asyncio_router
        self._listeners = dict(self.asyncio_router.long_poll_client.key_listeners)

    def list(self, replicas: Sequence[RunningReplicaInfo], *, is_available: bool = True) -> None:
        """The long-poll callback of a list of replicas."""
        self.give(as_sent(replicas, is_available=is_available))

    def give(self, target: DeploymentTargetInfo) -> None:
        """The same, of one that `as_sent` has made before."""
        self._listeners[LongPollNamespace.DEPLOYMENT_TARGETS, DEPLOYMENT](target)

    def configure(self, **config: Any) -> None:
        """The long-poll callback of a configuration."""
        key = LongPollNamespace.DEPLOYMENT_CONFIG, DEPLOYMENT
        self._listeners[key](DeploymentConfig(**config))

    def take(self) -> None:
        """What a call over Serve's own path does first."""
        deferred = lists_of(self.asyncio_router)._deferred
        assert deferred is not None
        deferred.take()

    @property
    def request_router(self) -> Any:
        """Serve's, there since `configure`."""
        return self.asyncio_router._request_router


def as_pickle(replicas: Sequence[RunningReplicaInfo], *, is_available: bool = True) -> bytes:
    """What the controller sends of a list."""
    return pickle.dumps(DeploymentTargetInfo(is_available, list(replicas)))


def as_sent(
    replicas: Sequence[RunningReplicaInfo], *, is_available: bool = True
) -> DeploymentTargetInfo:
    """What arrives of it, each time of new objects."""
    sent: DeploymentTargetInfo = pickle.loads(as_pickle(replicas, is_available=is_available))
    return sent


def adapter_of(router: RealRouter) -> RouterAdapter:
    """Ours, to a router whose process has not left Ray."""
    counter = metrics.Counter(
        "serve_handle_request_counter", tag_keys=("handle", "deployment", "route", "application")
    ).set_default_tags({"handle": "handle", "deployment": DEPLOYMENT.name})
    return _Adapter(router.asyncio_router, counter)


class _Adapter(RouterAdapter):
    @property
    def is_serve_gone(self) -> bool:
        return False


@contextlib.asynccontextmanager
async def real_router(cost_s: float = 0.0) -> Any:
    """A router on the running loop; its tasks end with the context."""
    actors = Actors(cost_s)
    with _no_cluster(actors):
        try:
            yield RealRouter(actors)
        finally:
            await cancel_tasks()


@contextlib.contextmanager
def _no_cluster(actors: Actors) -> Iterator[None]:
    context = SimpleNamespace(
        get_worker_id=lambda: "worker", get_actor_id=lambda: None, get_node_id=lambda: ""
    )
    with (
        mock.patch("ray.get_runtime_context", return_value=context),
        mock.patch("ray.get_actor", actors.get),
    ):
        yield
