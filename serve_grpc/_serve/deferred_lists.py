"""Lists of replicas that Serve's request router takes when Serve's own path needs them.

A router of Serve hands each list to its request router, which makes a view of each new replica,
resolves its actor and asks it for its queue length. Where our handles call by value, nobody reads
that. So on the instances of such a router the newest list is kept, and taken when a call goes over
Serve's own path: by reference, `choose_replica`, `broadcast`, or a request router of the
deployment's own. While one is under way each list is taken as it comes, for the call may wait for
it. On the router's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

from serve_grpc._serve.replica_handles import LazyReplica, is_lazy_possible
from serve_grpc.config import LOGGER_NAME

__all__ = ["DeferredLists", "deferred_lists", "is_custom"]

logger = logging.getLogger(LOGGER_NAME)

FIRST_RAY = (2, 60)
"""Of those where lists may be kept. The names below are there in 2.57 as well, but on it a call of
`tests/ray/test_serve_fleet.py` over Serve's own path never ended; 2.58 and 2.59 were not tried."""
OF_ROUTER = (
    "_running_replicas",
    "_request_router",
    "_request_router_initialized",
    "_handle_source",
    "_deployment_available",
    "assign_request",
    "choose_replica",
    "broadcast",
)
OF_REQUEST_ROUTER = (
    "_update_running_replicas",
    "_probe_queue_lens",
    "_choose_replica_for_request",
    "num_pending_requests",
    "on_replica_actor_died",
)


def deferred_lists(router: Any) -> DeferredLists | None:
    """Those of an `AsyncioRouter`, from now on; None where Serve goes on as it does by itself."""
    if tuple(map(int, ray.__version__.split(".")[:2])) < FIRST_RAY:
        _say_eager("it is older than Ray 2.60")
        return None
    lacks = [name for name in OF_ROUTER if not hasattr(router, name)]
    lacks += [n for n in OF_REQUEST_ROUTER if not hasattr(PowerOfTwoChoicesRequestRouter, n)]
    if lacks or not is_lazy_possible():
        _say_eager(f"it has no {', '.join(lacks) or 'get_actor_handle'}")
        return None
    # A proxy gives each replica its own handle as soon as the replica is listed.
    return None if router._handle_source is DeploymentHandleSource.PROXY else DeferredLists(router)


@functools.cache
def _say_eager(reason: str) -> None:
    logger.warning(
        "With this version of Ray Serve the actor of each replica is looked up when the list of "
        "replicas arrives, though calls by value need none: %s.",
        reason,
    )


def is_custom(router_class: Any) -> bool:
    """Whether a class of request routers is not Serve's default."""
    # By name, as Serve itself decides it: the class may come as a pickled copy.
    default: str = PowerOfTwoChoicesRequestRouter.__name__
    return bool(router_class.__name__ != default)


async def _no_probes(replicas: list[Any], backoff_index: int) -> list[Any]:
    """In the place of `_probe_queue_lens`, which would look up the actors of a whole list.

    It only fills a cache: Serve's router asks those that it considers if they are not in there.
    """
    return []


class DeferredLists:
    """Of one router of Serve.

    Args:
        router: The `AsyncioRouter`; its methods for calls are wrapped on the instance.
    """

    def __init__(self, router: Any) -> None:
        self._router = router
        self._request_router: Any = None
        self._untaken: list[Any] | None = None
        self._calls = 0
        self._wrap(router)
        self.follow()

    def __repr__(self) -> str:
        state = "taken" if self._untaken is None else f"{len(self._untaken)} replicas not taken"
        return f"<DeferredLists: {state}, {self._calls} calls under way>"

    # ------------------------------------------------------------ lists

    def follow(self) -> None:
        """Notice that the configuration has come, and with it perhaps the request router."""
        request_router = self._router._request_router
        if request_router is None or request_router is self._request_router:
            return
        self._request_router = request_router
        self._give = request_router._update_running_replicas
        request_router._update_running_replicas = self._hold
        create = request_router._create_replica_wrapper_func
        request_router._create_replica_wrapper_func = lambda info: (
            create(info) if info.is_cross_language else LazyReplica(info)
        )
        self._choose = request_router._choose_replica_for_request
        request_router._choose_replica_for_request = self._choose_resolved
        self._take_if_needed()

    def on_list(self, infos: list[Any]) -> None:
        """Notice a list that Serve's router has dealt with by now."""
        self.follow()
        if self._request_router is None:
            # Else the request router, when it is made, would take it from there by itself.
            self._router._running_replicas = None
            self._untaken = infos

    def _hold(self, infos: list[Any]) -> None:
        self._untaken = infos
        self._take_if_needed()

    def _take_if_needed(self) -> None:
        if self._request_router is not None and self._is_needed():
            self.take()

    def _is_needed(self) -> bool:
        if self._calls or is_custom(type(self._request_router)):
            return True
        # Calls that were begun before we came: they wait for a replica, or for the configuration.
        waiting_calls = self._router._request_router_initialized._waiters
        return bool(waiting_calls or self._request_router.num_pending_requests)

    def take(self) -> None:
        """Let Serve's request router have the newest list, if it has not."""
        request_router, untaken = self._request_router, self._untaken
        if request_router is None or untaken is None:
            return
        self._untaken = None
        request_router._probe_queue_lens = _no_probes
        try:
            self._give(untaken)
        finally:
            del request_router._probe_queue_lens

    # ------------------------------------------------------------ Serve's own path

    def _wrap(self, router: Any) -> None:
        assign, choose = router.assign_request, router.choose_replica
        broadcast = router.broadcast

        @functools.wraps(assign)
        async def assign_request(*args: Any, **kwargs: Any) -> Any:
            with self._call():
                return await assign(*args, **kwargs)

        @functools.wraps(choose)
        @contextlib.asynccontextmanager
        async def choose_replica(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with self._call():
                async with choose(*args, **kwargs) as selection:
                    yield selection

        @functools.wraps(broadcast)
        async def broadcast_resolved(metadata: Any, *args: Any, **kwargs: Any) -> Any:
            with self._call():
                await self._resolve_all(metadata)
                return await broadcast(metadata, *args, **kwargs)

        router.assign_request = assign_request
        router.choose_replica = choose_replica
        router.broadcast = broadcast_resolved

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        self._calls += 1
        try:
            self.take()
            yield
        finally:
            self._calls -= 1

    async def _choose_resolved(self, pending_request: Any, *, is_retry: bool = False) -> Any:
        with self._call():  # the caller may have got the method before it was wrapped
            # The request is sent in the same turn in which Serve's router has its replica, so this
            # is the last point where somebody can wait for the look-up.
            while True:
                replica = await self._choose(pending_request, is_retry=is_retry)
                if await self._is_usable(replica, pending_request.metadata):
                    return replica
                is_retry = True

    async def _resolve_all(self, metadata: Any) -> None:
        # `broadcast` sends to all of them in one turn.
        if not self._router._deployment_available:
            return  # it says so
        await self._router._request_router_initialized.wait()
        replicas = tuple(self._request_router.curr_replicas.values())
        await asyncio.gather(*(self._is_usable(replica, metadata) for replica in replicas))

    async def _is_usable(self, replica: Any, metadata: Any) -> bool:
        """Look its actor up if the request needs it; False if there is none, and it was dropped."""
        # A sender of ours is there by now, if the replica has an endpoint.
        has_sender = not metadata._by_reference and replica._grpc_replica_wrapper is not None
        if has_sender or not isinstance(replica, LazyReplica) or replica.is_resolved:
            return True
        try:
            await replica.resolve()
        except ActorDiedError:
            self._request_router.on_replica_actor_died(replica.replica_id)
            return False
        return True
