"""The router behind Serve's own handle: replica set, configuration, and what Serve counts.

Updates arrive where Serve's long poll delivers them to its own router, so a handle of ours costs
the controller no more than one of Serve's. All methods are for the router's loop, except what says
otherwise.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.serve._private.constants import (
    RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE,
    RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING,
)
from ray.serve._private.router import (
    CurrentLoopRouter,
    SharedRouterLongPollClient,
    SingletonThreadRouter,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_grpc._serve.deferred_lists import is_custom
from serve_grpc._serve.replica_facts import ReplicaNews, has_endpoint
from serve_grpc._serve.replica_lists import Follower, ReplicaLists, lists_of
from serve_grpc._serve.request_routers import Send, carry_requests
from serve_grpc._serve.router_metrics import RequestRouterMetrics
from serve_grpc.routing.retry import Backoff

__all__ = ["RouterAdapter", "has_replicas", "router_adapter"]

FLUSH_S = 0.05
"""Well below the shortest interval at which Serve looks at these numbers (0.1 s)."""


def router_adapter(serve_router: Any, handle_counter: Any) -> RouterAdapter | None:
    """Adapter to a handle's router, None for a kind that has no replicas (local testing mode)."""
    if has_replicas(serve_router):
        return RouterAdapter(serve_router._asyncio_router, handle_counter)
    return None


def has_replicas(serve_router: Any) -> bool:
    """Whether it is of a kind that sends calls to replicas; from any thread."""
    return isinstance(serve_router, (SingletonThreadRouter, CurrentLoopRouter))


class RouterAdapter:
    """Serve's `AsyncioRouter`, by the few things this package needs of it.

    Attributes:
        calls, sent: Calls made on the handle, and how often one was sent; as of the last flush.
        request_router_metrics: Those that Serve's request router keeps.
    """

    def __init__(self, router: Any, handle_counter: Any) -> None:
        self._router = router
        self._handle_counter = handle_counter
        self._metrics = router._metrics_manager
        self.loop: asyncio.AbstractEventLoop = router._event_loop
        self.deployment_name: str = router.deployment_id.name
        self.app_name: str = router.deployment_id.app_name
        self.actor_id: str = router._self_actor_id or ""
        self.node_id: str = router._node_id if router._prefer_local_node_routing else ""
        self.zone: str = (
            router._availability_zone or "" if RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING else ""
        )
        self._lists: ReplicaLists | None = None
        self._send: Send | None = None
        self._equipped: Any = None
        # What happened since the last `_flush`, one entry each: an increment of Serve's costs more
        # than a small frame, and counting a list at the end is done in C.
        self._calls: list[tuple[str, str]] = []
        self._refused: list[str] = []
        self._sent: list[str] = []
        self._finished: list[str] = []
        self._flusher: asyncio.TimerHandle | None = None
        self.calls = 0
        self.sent = 0
        self.request_router_metrics = RequestRouterMetrics(router)

    # ------------------------------------------------------------ the control plane's news

    def subscribe(self, on_change: Callable[[ReplicaNews], None]) -> None:
        """Call `on_change` now, if the replicas are known, and after each update.

        Large news come in a later turn, and while they are made ready the loop does other work.
        """
        self._lists = lists_of(self._router)
        self._lists.follow(Follower(on_change, self._equip_request_router, self._tell_counts))

    def _tell_counts(self) -> None:
        # A replica that left may still finish calls; its id is kept while Serve counts any. First
        # what is still to be told of it, or the count would be an old one.
        if self._flusher is not None:
            self._flusher.cancel()
            self._flush()

    def carry_requests(self, send: Send) -> None:
        """Let by-value requests of ours, which Serve's own router assigns, go through `send`."""
        self._send = send
        self._equip_request_router()

    def _equip_request_router(self) -> None:
        request_router = self._router._request_router  # made when the configuration arrives
        if request_router is None or self._send is None or self._equipped is request_router:
            return
        self._equipped = request_router
        carry_requests(request_router, self._send, has_endpoint)

    @property
    def is_configured(self) -> bool:
        """Whether the deployment's configuration has arrived."""
        return self._metrics._deployment_config is not None

    @property
    def has_custom_request_router(self) -> bool:
        """Whether the deployment asks for a request router other than Serve's default."""
        router_class = self._router._request_router_class
        return router_class is not None and is_custom(router_class)

    @property
    def backoff(self) -> Backoff:
        """Pauses when every replica is full."""
        router = self._router
        fallback = Backoff()
        values = (
            (router._initial_backoff_s, fallback.initial_s),
            (router._backoff_multiplier, fallback.multiplier),
            (router._max_backoff_s, fallback.max_s),
        )
        return Backoff(*(default if value is None else value for value, default in values))

    @property
    def is_serve_gone(self) -> bool:
        """Whether no more news can come, for Serve was shut down, or this process has left Ray."""
        if not ray.is_initialized():
            return True
        # Cached for each controller and loop, so this is the client that Serve's router has.
        shared = SharedRouterLongPollClient.get_or_create(
            self._router._controller_handle, self.loop
        )
        return not shared.long_poll_client.is_running

    # ------------------------------------------------------------ admission to the queue

    @property
    def is_unavailable(self) -> bool:
        """Whether Serve says that no replica will come."""
        return not self._router._deployment_available

    def unavailable(self) -> Exception:
        """The error of a call that is made while no replica will come."""
        error: Exception = DeploymentUnavailableError(self._router.deployment_id)
        return error

    def refusal(self, *, is_full: bool, room_to_come: Callable[[], int]) -> Exception | None:
        """Why a new call may not even wait, or None.

        Args:
            is_full: Whether it would have to wait.
            room_to_come: How many of those that wait will have room once sessions are open.
        """
        # The rules of `AsyncioRouter.assign_request` and `RouterMetricsManager.
        # wrap_request_assignment` in `ray/serve/_private/router.py`, in their order. Serve refuses
        # some calls of a burst that would find room, and says so there; here they are let in.
        if self.is_unavailable:
            return self.unavailable()
        if not is_full:
            return None
        config = self._metrics._deployment_config
        if config is None or config.max_queued_requests == -1:
            return None
        queued = self._metrics.num_queued_requests - room_to_come()
        if queued < config.max_queued_requests:
            return None
        full: Exception = BackPressureError(
            num_queued_requests=queued,
            max_queued_requests=config.max_queued_requests,
            **_http_fields(config),
        )
        return full

    # ------------------------------------------------------------ what Serve counts

    def on_queued(self) -> None:
        """One more call waits at this handle."""
        self._metrics.inc_num_queued_requests()

    def on_unqueued(self) -> None:
        """A call that waited does so no more: it was sent, or is over."""
        self._metrics.dec_num_queued_requests()

    def ask_for_first_replica(self) -> None:
        """Tell the autoscaler at once that a call waits for a deployment scaled to zero."""
        if self._metrics.should_send_scaled_to_zero_optimized_push(curr_num_replicas=0):
            self._metrics.push_autoscaling_metrics_to_controller()

    def on_call(self, route: str, app_name: str) -> None:
        """Count a call made on the handle, and let in unless `on_refused` follows."""
        self._calls.append((route, app_name))
        if self._flusher is None:
            self._flusher = self.loop.call_later(FLUSH_S, self._flush)

    def on_refused(self, route: str) -> None:
        """The call that was just counted was not let in."""
        self._refused.append(route)

    def on_sent(self, replica_id: str) -> None:
        """Count a call as running on a replica."""
        self._sent.append(replica_id)
        if self._flusher is None:
            self._flusher = self.loop.call_later(FLUSH_S, self._flush)

    def on_finished(self, replica_id: str) -> None:
        """Count a call that ran on a replica as over."""
        self._finished.append(replica_id)
        if self._flusher is None:
            self._flusher = self.loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._flusher = None
        self.calls += len(self._calls)
        self.sent += len(self._sent)
        routed: Counter[str] = Counter()
        for (route, app_name), number in Counter(self._calls).items():
            self._handle_counter.inc(number, tags={"route": route, "application": app_name})
            routed[route] += number
        routed.subtract(self._refused)
        for route, number in routed.items():
            if number:
                # As `inc_num_total_requests` ends up doing, which takes one at a time.
                self._metrics.num_router_requests.inc(number, tags={"route": route})
        self._calls.clear()
        self._refused.clear()
        if RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE:
            running = Counter(self._sent)
            running.subtract(self._finished)
            if self._lists is not None:
                self._lists.count(running)
            if not self._metrics._cached_metrics_enabled:  # else Serve sets it every so often
                counted = self._metrics.num_requests_sent_to_replicas
                self._metrics.num_running_requests_gauge.set(sum(counted.values()))
        self._sent.clear()
        self._finished.clear()


def _http_fields(config: Any) -> dict[str, Any]:
    # Ray before 2.58 has no backpressure_config.
    backpressure = getattr(config, "backpressure_config", None)
    if backpressure is None:
        return {}
    return {
        "status_code": backpressure.status_code,
        "retry_after_s": backpressure.retry_after_s,
    }
