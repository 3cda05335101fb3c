"""The replica this process runs: Serve's admission, accounting and rules of execution.

Everything here is called on the replica's main loop, except what says otherwise.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.serve._private.common import RequestMetadata
from ray.serve._private.constants import SERVE_LOGGER_NAME

from serve_grpc._serve.access_log import AccessLog
from serve_grpc._serve.request_metrics import RequestMetrics

__all__ = ["ReplicaAdapter", "UserMethod", "current_replica", "refuse_inputs_of_batches"]

logger = logging.getLogger(SERVE_LOGGER_NAME)

_METADATA = RequestMetadata(request_id="", internal_request_id="")


@dataclass(frozen=True, slots=True)
class UserMethod:
    """A method of the user's class, and how Serve runs its kind.

    Attributes:
        is_coroutine: `async def` that returns: awaited on the user's loop.
        in_thread: `def`, run in Serve's thread pool as `RAY_SERVE_RUN_SYNC_IN_THREADPOOL` says.
    """

    name: str
    function: Callable[..., Any]
    is_coroutine: bool
    in_thread: bool


def refuse_inputs_of_batches(method: UserMethod) -> None:
    """Check that a method takes streams as arguments.

    Raises:
        TypeError: It is a `@serve.batch` method. Its code serves many requests in one call, which
            lasts longer than each of them: no request's stream could tell when it is over.
    """
    # What `batch` of `ray/serve/batching.py` (Ray 2.60) hangs on the functions that it makes.
    if hasattr(method.function, "set_max_batch_size"):
        raise TypeError(
            f"Method '{method.name}' is a @serve.batch method, and takes no stream as an argument. "
            "Call a method that is none: it can read the stream, and await the batched method for "
            "each item."
        )


def current_replica() -> ReplicaAdapter:
    """The replica in this process.

    Raises:
        RuntimeError: This process runs none, as in local testing mode.
    """
    actor_id = ray.get_runtime_context().get_actor_id()
    for key, actor in ray_worker.global_worker.actors.items():
        if key.hex() == actor_id and hasattr(actor, "_replica_impl"):
            return ReplicaAdapter(actor._replica_impl, actor_id)
    raise RuntimeError("this process is not a Ray Serve replica")


class ReplicaAdapter:
    """Serve's `Replica`, by the few things this package needs of it."""

    def __init__(self, replica: Any, actor_id: str) -> None:
        self.actor_id = actor_id
        self._replica = replica
        self._user_code = replica._user_callable_wrapper
        self._metrics = replica._metrics_manager
        self._semaphore = replica._semaphore
        self._methods: dict[str, UserMethod] = {}
        self.main_loop: asyncio.AbstractEventLoop = replica._event_loop
        self.user_loop: asyncio.AbstractEventLoop = self._user_code.event_loop
        self.replica_id: str = replica._replica_id.unique_id
        self.deployment_name: str = replica._deployment_id.name
        self.app_name: str = replica._deployment_id.app_name
        self._access_log = AccessLog(self.main_loop, replica)
        self._request_metrics = RequestMetrics(self._metrics, self.main_loop)
        self._on_released: Callable[[], None] | None = None

    # ------------------------------------------------------------ admission

    @property
    def max_ongoing_requests(self) -> int:
        """How many requests may run at once, over all transports."""
        return int(self._replica.max_ongoing_requests)

    def ongoing(self) -> int:
        """How many run now, as Serve counts them."""
        return int(self._replica.get_num_ongoing_requests())

    @property
    def is_shutting_down(self) -> bool:
        """Whether Serve has begun to shut this replica down."""
        return bool(self._replica._shutting_down or self._replica._quiescing)

    def try_admit(self) -> bool:
        """Take a slot of `max_ongoing_requests`; False if there is none. Never waits."""
        # `locked` of `Semaphore` in `ray/serve/_private/utils.py` is also true while others wait to
        # acquire it, so nobody of Serve's own is overtaken. It looks for them one by one, which
        # most of the time is for nobody.
        semaphore = self._semaphore
        if semaphore._waiters:
            if semaphore.locked():
                return False
        elif semaphore._value >= semaphore.get_max_value():
            return False
        # What its `acquire` does when it is not locked, without the coroutine.
        semaphore._value += 1
        self._metrics.inc_num_ongoing_requests(_METADATA)
        return True

    def try_claim(self, reserved_slot: str) -> bool:
        """Take a slot that `reserve_slot` of Serve's replica holds; False if there is none."""
        # As `_start_request` of Serve's replica (Ray 2.60) does with the token of a request:
        # `reserve_slot` has acquired the semaphore already.
        if reserved_slot not in self._replica._reserved_slots:
            return False
        self._replica._reserved_slots.remove(reserved_slot)
        self._metrics.inc_num_ongoing_requests(_METADATA)
        return True

    def release(self) -> None:
        """Give a slot back: to whoever waits in Serve's semaphore, or to be taken by anybody."""
        # The count first: who takes the slot next counts itself, and load must not be told twice.
        try:
            self._metrics.dec_num_ongoing_requests(_METADATA)
        finally:
            semaphore = self._semaphore
            if semaphore._waiters or self._on_released is None:
                semaphore.release()
            else:
                # What it does while nobody waits, and what we have it do.
                semaphore._value -= 1
                self._on_released()

    def on_slot_released(self, callback: Callable[[], None]) -> None:
        """Call back after each release of a slot, whichever transport had it."""
        # Serve has no hook for this. Every slot that is given back, a reserved one too, comes
        # through this method, so replacing it on this one object is enough.
        release = self._semaphore.release
        self._on_released = callback

        def release_and_tell() -> None:
            release()
            callback()

        self._semaphore.release = release_and_tell

    def around_shutdown(
        self, before: Callable[[], Awaitable[None]], after: Callable[[], Awaitable[None]]
    ) -> None:
        """Run `before` when Serve starts the graceful shutdown and `after` when it is done.

        A controller that was restarted asks for the shutdown again, so both may run twice.
        """
        # The controller calls it on the actor, which passes it on to this object (its
        # `_replica_impl`, in `ray/serve/_private/replica.py`).
        perform = self._replica.perform_graceful_shutdown

        async def perform_around() -> None:
            await before()
            try:
                await perform()
            finally:
                await after()
                self._request_metrics.close()
                self._access_log.close()

        self._replica.perform_graceful_shutdown = perform_around

    # ------------------------------------------------------------ the user's code

    def method(self, name: str) -> UserMethod:
        """A method of the user's class; on the user's loop.

        Raises:
            RayServeException: There is none of that name; the text lists those there are.
        """
        method = self._methods.get(name)
        if method is None:
            # Once for each method: what kind of code it is does not change, and asking takes longer
            # than a small request.
            info = self._user_code.get_user_method_info(name)
            function = info.callable
            is_coroutine = inspect.iscoroutinefunction(function)
            in_thread = (
                self._user_code._run_sync_methods_in_threadpool
                and (inspect.isfunction(function) or inspect.ismethod(function))
                and not is_coroutine
                and not inspect.isasyncgenfunction(function)
            )
            method = UserMethod(info.name, function, is_coroutine, in_thread)
            self._methods[name] = method
        return method

    async def call_by_serves_rules(
        self, method: UserMethod, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a method that is not a coroutine function: thread pool, warning, and all."""
        result, _ = await self._user_code._call_func_or_gen(
            method.function, args=args, kwargs=kwargs, is_streaming=False
        )
        return result

    # ------------------------------------------------------------ accounting

    def record(
        self,
        *,
        method_name: str,
        route: str,
        request_id: str,
        client: str,
        latency_ms: float,
        status: str,
        exception_type: str | None,
    ) -> None:
        """Count a finished request and log it, as Serve does for its own."""
        self._request_metrics.add(route, latency_ms, exception_type)
        path = route if self._replica._ingress and route else method_name
        self._access_log.add(
            (time.time(), request_id, route, "CALL", path, status, latency_ms, client)
        )
