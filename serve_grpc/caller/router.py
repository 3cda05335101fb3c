"""Carries the calls of one deployment: follows its replicas and lets new calls in.

On the loop of Serve's own router, where the control plane's news arrive. Where a call is sent, or
waits, is the line's business (`line.py`), or that of Serve's router (`assigned.py`,
`serve_calls.py`); what becomes of it then, its delivery's. Invariant: a call that was submitted is
before the entrance, in the line, with Serve, on a connection, or done.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterator

from serve_grpc._serve.cluster import node_id
from serve_grpc._serve.replica_facts import ReplicaNews
from serve_grpc._serve.routers import RouterAdapter
from serve_grpc._serve.tracing import is_tracing
from serve_grpc.allow_list import check_process_list
from serve_grpc.caller.admission import Admission, Arguments
from serve_grpc.caller.assigned import AssignedCalls
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.dialling import has_lane
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.line import WaitingLine
from serve_grpc.caller.outcomes import Cancelled, GivenUp
from serve_grpc.caller.pool import pool_of
from serve_grpc.caller.replica_set import ReplicaSet
from serve_grpc.caller.replicas import Replicas
from serve_grpc.caller.tally import Tally, caller_metrics_of
from serve_grpc.caller.waking import ServeWatch
from serve_grpc.config import Settings
from serve_grpc.mailbox import mailbox_of
from serve_grpc.pacing import Paced
from serve_grpc.payload import Memory
from serve_grpc.shared_memory.blocks import HEAP
from serve_grpc.shared_memory.process import process_memory

__all__ = ["Router"]

PART = 50
"""Replicas that are taken at a time; a connection to each, at 50 µs, is a slice of `Paced`."""


class Router:
    """The router of one deployment. Everything but `__init__` and `new_delivery` runs on its loop.

    Attributes:
        mailbox: How other threads reach this loop.
        is_tracing: Whether this process traces.
        feed: What is known of the deployment; may be read in any thread.
        line: Chooses for its calls.
        tally: What is counted of its calls.
        memory: Where large payloads are written: where a replica may read them, or the heap.
    """

    def __init__(self, adapter: RouterAdapter, settings: Settings) -> None:
        check_process_list(settings.serializers)
        self._adapter = adapter
        self._closed_reason: str | None = None
        self._was_asked = False
        self.is_tracing = is_tracing()
        self.feed = Feed()
        self.memory: Memory = HEAP
        self._settings = settings
        self.mailbox = mailbox_of(adapter.loop)
        self.tally = Tally(adapter)
        self.line = WaitingLine(adapter, self.tally)
        self._admission = Admission(adapter, self.tally, self.line)
        # In the mailbox before anybody has this router: whatever is submitted finds it started.
        self.mailbox.run(self._start)

    def __repr__(self) -> str:
        return f"<Router of {self._adapter.deployment_name!r}: {len(self.line)} waiting>"

    def _start(self) -> None:
        adapter, pool, line, tally = self._adapter, pool_of(), self.line, self.tally
        replicas = Replicas(pool, self, node_id=adapter.node_id, zone=adapter.zone)
        self._assigned = AssignedCalls(replicas, self.mailbox, self._settings, ended=tally.ended)
        tally.replicas = line.replicas = replicas
        # The line and the entrance need each other, and only one can be made first.
        line.take_early = self._admission.take_early
        line.watch = ServeWatch(
            adapter,
            is_needed=lambda: bool(self._admission) or line.has_waiting,
            has_ready=lambda: replicas.has_ready,
            on_gone=self._on_serve_gone,
        )
        self._metrics = caller_metrics_of(pool, adapter.actor_id)
        self._metrics.add(tally)
        is_near = functools.partial(has_lane, settings=self._settings, here=node_id())
        self._replica_set = ReplicaSet(is_near=is_near)
        self._work = Paced(self.mailbox, f"follow the replicas of {adapter.deployment_name}")
        # After all of the above: Serve may know the replicas already, and tells them at once.
        adapter.subscribe(self._on_replicas)
        adapter.carry_requests(self._assigned.send)

    @property
    def is_used(self) -> bool:
        """Whether calls by value have been made; from any thread."""
        return self._was_asked or bool(self.tally.outcomes())

    # ------------------------------------------------------------ the feed

    def _on_replicas(self, news: ReplicaNews) -> None:
        # An error is logged there: Serve's long poll would stop for good if it reached it.
        self._work.run(self._update(news))

    def _update(self, news: ReplicaNews) -> Iterator[None]:
        changes = []
        for number, part in enumerate(news.parts(PART)):
            if number:
                yield
            changes.append(self._replica_set.update(part))
        if self._closed_reason is not None:
            return
        adapter, line, was_ready = self._adapter, self.line, self.feed.is_ready
        is_configured = adapter.is_configured
        feed = self.feed.after(
            self._replica_set,
            is_configured=is_configured,
            has_custom_router=is_configured and adapter.has_custom_request_router,
        )
        # What replicas take is known before calls go to them; that there are some, when they do.
        if was_ready:
            self._follow(feed)
        for number, (changed, gone) in enumerate(changes):
            if number:
                if was_ready:
                    line.pump()
                yield
            if self._closed_reason is not None:
                return
            # Replicas first, calls after: a call must not be sent to one that has just left.
            line.replicas.update(changed, gone)
        if not was_ready:
            self._follow(feed)
        near = self._replica_set.has_near
        self.memory = (process_memory().pieces if near else None) or HEAP
        self._assigned.on_replicas()
        line.pump()
        if is_configured:
            self._admission.on_configured(has_replicas=len(self._replica_set) > 0)

    def _follow(self, feed: Feed) -> None:
        was_ready, line = self.feed.is_ready, self.line
        self.feed = line.feed = feed
        line.bound.feed = feed.for_bound_calls()
        # Calls that came before the configuration are not counted yet: had it named a request
        # router of the user's, they would have gone to Serve's, which counts for itself.
        if feed.is_ready and not was_ready and not feed.is_serve_routed:
            for delivery in line.waiting():
                line.count(delivery)

    def on_change(self, connection: Connection) -> None:
        """A replica has room again, or turned calls away, or was lost."""
        if self._assigned:
            self._assigned.on_change(connection)
        self.line.on_change(connection)

    # ------------------------------------------------------------ new calls

    def new_delivery(
        self,
        call: Call,
        *,
        deadline_s: float | None = None,
        is_idempotent: bool = False,
        bound_to: str | None = None,
    ) -> Delivery:
        """The way of a new call over this router; from any thread.

        Args:
            call: To be given its payload before it is submitted, or by `arguments`.
            deadline_s: On `time.monotonic`, None for none.
            is_idempotent: Whether it may be repeated after it may have started.
            bound_to: Id of the only replica that it may go to; None for any.
        """
        self._was_asked = True
        return Delivery(
            call,
            self.line if bound_to is None else self.line.bound.to(bound_to),
            deadline_s=deadline_s,
            is_idempotent=is_idempotent,
            ended=self.tally.ended,
        )

    def submit(self, delivery: Delivery, arguments: Arguments | None = None) -> None:
        """Send a call, or let it wait; once for each call.

        Args:
            delivery: Of a call with its payload, unless `arguments` gives it one.
            arguments: Waits for the call's arguments.
        """
        call = delivery.call
        # A parent that was cancelled may have ended it between `remote()` and this turn.
        if call.outcome is not None:
            return
        self.line.on_new_call()
        if call.is_cancelled:
            delivery.end(Cancelled())
            return
        if self._closed_reason is not None:
            delivery.end(GivenUp(self._closed_reason))
            return
        if delivery.deadline_s is not None:
            delivery.expire_after(delivery.deadline_s - time.monotonic())
        self._admission.enter(delivery, arguments)

    # ------------------------------------------------------------ the end

    def _on_serve_gone(self) -> None:
        self.close("Ray Serve was shut down")
        self.line.serve_calls.fail_all("Ray Serve was shut down")

    def closed_twin(self, reason: str) -> Router:
        """For handles that refuse every call, while others go on to use this router."""
        # Shallow: the twin shares line and tally, and only its refusal is its own.
        twin = copy.copy(self)
        twin._closed_reason = reason
        return twin

    def close(self, reason: str) -> None:
        """Fail what waits and every later call; calls on their way go on."""
        self._closed_reason = reason
        self._admission.close()
        self.line.close(reason)
        self.line.fail_waiting()
        self._assigned.close(reason)
        # Connections are let go, not cut: each closes when its last call is over (`retire`). Those
        # it has, for the list may be ahead of them: news are taken in parts.
        self.line.replicas.update((), self.line.replicas.ids)
        self._metrics.remove(self.tally)
