"""Picks a replica for each call of one deployment, or lets the call wait its turn.

Lives on the loop of Serve's own router, where the control plane's news arrive. Waiting calls stand
in one row, first come, first served; they move when one of our calls ends, a replica that turned us
away calls back, or the replica set changes. Only where none of that can happen does a timer, with
Serve's backoff, look again. Invariants: a call is in the row, on a connection, or done; while calls
wait, no replica has room, so news of one replica concern that one alone. (Calls that came back, or
wait for a replica they prefer to open its first session, are the exception: all are looked at.)
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import NamedTuple

from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.routers import ReplicaSet, RouterAccess
from serve_grpc._serve.tracing import is_tracing
from serve_grpc.allow_list import AllowList, check_process_list
from serve_grpc.caller import outcomes
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.fallback import NativeCall
from serve_grpc.caller.placed import PlacedCalls
from serve_grpc.caller.pool import pool_of
from serve_grpc.caller.replicas import Replicas
from serve_grpc.caller.reporting import reporter_of
from serve_grpc.caller.tally import Tally
from serve_grpc.caller.waiting import WaitingCalls
from serve_grpc.caller.watch import ServeWatch
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.errors import ServeGrpcError
from serve_grpc.payload import Payload
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.routing.retry import RetryBudget
from serve_grpc.transport.mailbox import Mailbox, mailbox_of

__all__ = ["Router"]

logger = logging.getLogger(LOGGER_NAME)

# As plain integers: an enum's comparison runs in Python's slow lane, once for each reply.
_RESULT, _ITEM = CallEventKind.RESULT.value, CallEventKind.ITEM.value


class _Place(NamedTuple):
    """Where a sent call is."""

    owner: Router
    connection: Connection
    call_id: int


class Router:
    """Carries the calls of one deployment. Everything but `__init__` runs on its loop.

    Attributes:
        mailbox: How other threads reach this loop.
        is_ready: Whether the deployment's replicas and configuration are known.
        is_tracing: Whether this process traces.
        serializers: The only ones that all replicas take, as far as is known; None for all.
        fallback_reason: Why calls go over Serve's own transport; None if they do not.
        is_native: Whether Serve's own router places the calls: always where they go over its own
            transport, and where the deployment has a request router of its own.
        tally: What is counted of its calls.
    """

    def __init__(self, access: RouterAccess, settings: Settings) -> None:
        check_process_list(settings.serializers)
        self._access = access
        self._settings = settings
        self.tally = Tally(access)
        self._row = WaitingCalls(self.tally)
        self._sequence = itertools.count()
        self._replicas: Replicas | None = None
        self._budget = RetryBudget(time.monotonic())
        self._backoff_timer: asyncio.TimerHandle | None = None
        self._backoffs = 0
        self._has_returned = False  # calls stand in the row again that were on a replica
        self._closed_reason: str | None = None
        self.is_ready = False
        self.is_tracing = is_tracing()
        self.serializers: AllowList = None
        self.fallback_reason: str | None = None
        self.is_native = False
        self._placed: PlacedCalls | None = None
        self._serve_watch = ServeWatch(
            access, self._needs_replicas, lambda: self.close("Ray Serve was shut down")
        )
        self.loop = access.loop
        self.mailbox: Mailbox = mailbox_of(access.loop)
        self.mailbox.run(self._start)

    def __repr__(self) -> str:
        return f"<Router of {self._access.deployment_name!r}: {len(self._row)} waiting>"

    def _start(self) -> None:
        access = self._access
        pool = pool_of()
        self._replicas = Replicas(pool, self, node_id=access.node_id, zone=access.zone)
        self._placed = PlacedCalls(
            self._replicas, self.mailbox, self._settings, ended=self.tally.ended
        )
        self.tally.replicas = self._replicas
        self._reporter = reporter_of(pool, access.actor_id)
        self._reporter.add(self.tally)
        access.subscribe(self._on_replicas)
        access.carry_requests(self._placed.send)

    # ------------------------------------------------------------ the replica set

    def _on_replicas(self, replica_set: ReplicaSet) -> None:
        try:
            self._update(replica_set)
        except Exception:
            # Serve's long poll would stop for good if an error reached it.
            logger.exception("could not follow the replicas of %s", self._access.deployment_name)

    def _update(self, replica_set: ReplicaSet) -> None:
        if self._closed_reason is not None:
            return
        assert self._replicas is not None
        assert self._placed is not None
        reachable = replica_set.reachable
        if replica_set.replicas and self._access.is_configured:
            was_ready, self.is_ready = self.is_ready, True
            self.fallback_reason = None if reachable else "has no serve_grpc endpoint"
            self.is_native = not reachable or self._access.has_custom_request_router
            if not was_ready and not self.is_native:
                for call in self._row:
                    self._count(call)
                    self._access.on_routed(call.fields.envelope.route)
        self.serializers = replica_set.serializers
        self._replicas.update(reachable)
        self._placed.on_replicas()
        self._pump()

    def _go_native(self) -> None:
        while (call := self._row.leave()) is not None:
            if call.native is not None:
                if self.fallback_reason is not None:
                    call.ended = None  # Serve's transport carries it, and Serve alone counts it
                call.place = NativeCall(call, self._budget)
            else:  # it was on its way when the deployment was replaced by one without an endpoint
                outcomes.fail(call, ServeGrpcError("the deployment no longer has an endpoint"))

    def _count(self, call: Call) -> None:
        """Count a call as Serve does; those that go over Serve's transport are counted there."""
        envelope = call.fields.envelope
        self._access.on_call(envelope.route, envelope.app_name)

    # ------------------------------------------------------------ new calls

    def submit(self, call: Call) -> None:
        """Send a call, or let it wait."""
        if call.done:
            return
        call.sequence = next(self._sequence)
        self._budget.on_call()
        if call.is_cancelled:
            call.fail(RequestCancelledError(call.fields.request_id))
            return
        if self._closed_reason is not None:
            outcomes.fail(call, ServeGrpcError(self._closed_reason))
            return
        if call.deadline_s is not None:
            self.watch_deadline(call)
        if self.is_native:
            self._row.add(call)
            self._go_native()
            return
        if self.is_ready:
            self._count(call)
        is_first = not self._row or self._row.head() is None
        connection = self._pick(call) if is_first else None
        refusal = self._access.refusal(is_full=connection is None)
        if refusal is not None:
            call.fail(refusal)
            return
        if self.is_ready:
            self._access.on_routed(call.fields.envelope.route)
        if connection is not None:
            self._send(call, connection, is_new=True)
            return
        self._row.enter(call)
        if self._replicas:
            if is_first:
                self._ensure_progress()
        else:
            self._access.ask_for_first_replica()
            self._serve_watch.look()

    def watch_deadline(self, call: Call) -> None:
        """End the call when its deadline passes, wherever it is then."""
        if call.deadline_s is not None and call.expiry is None:
            left_s = max(0.0, call.deadline_s - time.monotonic())
            call.expiry = self.loop.call_later(left_s, self._expire, call)

    def _pick(self, call: Call) -> Connection | None:
        replicas, model_id = self._replicas, call.fields.multiplexed_model_id
        return None if replicas is None else replicas.pick(model_id)

    def _send(self, call: Call, connection: Connection, *, is_new: bool = False) -> None:
        try:
            call_id = outcomes.send(call, connection, is_new=is_new)
        except ServeGrpcError as error:
            outcomes.fail(call, error)
            return
        call.place = _Place(self, connection, call_id)
        self._access.on_sent(connection.peer.facts.replica_id)
        if not is_new:
            self.tally.on_waited(call)

    # ------------------------------------------------------------ the row

    def _pump(self) -> None:
        """Send what waits to whoever has room."""
        self._has_returned = False
        if self._closed_reason is not None or self._access.is_unavailable:
            self._fail_waiting()  # no replica will come, and nothing else would wake them
        elif self.is_native:
            self._go_native()
        while (call := self._row.head()) is not None:
            connection = self._pick(call)
            if connection is None:
                break
            self._row.leave()
            self._send(call, connection)
        self._ensure_progress()

    def _fail_waiting(self) -> None:
        while (call := self._row.leave()) is not None:
            if self._closed_reason is not None:
                outcomes.fail(call, ServeGrpcError(self._closed_reason))
            else:
                outcomes.fail_for_good(call, self._access.unavailable())

    def _return(self, call: Call) -> None:
        """Let a call that was on a replica wait again."""
        self._row.enter(call)
        if not self._has_returned:
            self._has_returned = True
            # The news of a replica that has left the set reach no one, so they cannot wake it.
            self.loop.call_soon(self._after_return)

    def _after_return(self) -> None:
        if self._has_returned:
            self._pump()

    def on_change(self, connection: Connection) -> None:
        """A replica has room again, or turned calls away, or was lost."""
        if self._placed:
            self._placed.on_change(connection)
        if not self._row:
            return
        assert self._replicas is not None
        if self._has_returned or self._replicas.is_opening or self.is_native or connection.is_down:
            self._pump()  # other replicas may have had room all the time
            return
        while connection.takes_calls and (call := self._row.leave()) is not None:
            self._send(call, connection)
        if connection.peer.blocked:
            self._ensure_progress()

    def _needs_replicas(self) -> bool:
        return self._row.head() is not None and not self._replicas

    def _ensure_progress(self) -> None:
        """While calls wait and only a refused replica could take them, look again after a pause."""
        if not self._row or self._backoff_timer is not None:
            return
        if self._replicas is not None and self._replicas.has_blocked:
            delay_s = self._access.backoff.delay_s(self._backoffs)
            self._backoff_timer = self.loop.call_later(delay_s, self._after_backoff)

    def _after_backoff(self) -> None:
        self._backoff_timer = None
        self._backoffs += 1
        if self._replicas is not None:
            self._replicas.unblock()
        self._pump()

    # ------------------------------------------------------------ what becomes of sent calls

    def on_reply(self, call: Call, kind: int, payload: Payload, error: Error | None) -> None:
        """One event of a call."""
        if kind == _ITEM:
            call.add_item(payload)
            return
        connection = self._take_off(call)
        peer = connection.peer
        self._backoffs = 0
        if error is None:
            if peer.failing:
                peer.on_success()
        elif error.code in outcomes.FAILURES and self._replicas is not None:
            self._replicas.on_failure(connection)
        if kind == _RESULT:
            call.succeed(payload)
            return
        outcomes.end_with_reply(
            call,
            kind,
            payload,
            error,
            connection=connection,
            max_message_bytes=self._settings.max_message_bytes,
        )

    def on_rejected(self, calls: list[Call]) -> None:
        """The replica was full: the calls go back to where they stood in the row."""
        self.tally.rejections += len(calls)
        for call in reversed(calls):
            self._take_off(call)
            self._return(call)

    def on_lost(self, call: Call, *, may_have_started: bool, reason: str) -> None:
        """The session ended under a call: repeat it if that is safe."""
        connection = self._take_off(call)
        may_repeat = not may_have_started or (
            call.is_idempotent and not call.has_items and self._budget.try_spend(time.monotonic())
        )
        if may_repeat and self._closed_reason is None:
            self.tally.retries += 1
            call.may_have_executed |= may_have_started
            self._return(call)
            return
        error = outcomes.replica_died(connection, reason, may_have_started=may_have_started)
        outcomes.fail(call, error)

    def _take_off(self, call: Call) -> Connection:
        """Note that a call left its replica; returns the connection it was on."""
        connection: Connection = call.place.connection
        call.place = None
        self._access.on_finished(connection.peer.facts.replica_id)
        return connection

    # ------------------------------------------------------------ giving up

    def cancel(self, call: Call) -> None:
        """The caller gives the call up, wherever it is."""
        if not call.done:
            self._withdraw(call)
            call.fail(RequestCancelledError(call.fields.request_id))

    def grant(self, call: Call, items: int, bytes_: int) -> None:
        """The consumer took this much of a stream."""
        if isinstance(call.place, _Place):
            call.place.connection.grant(call.place.call_id, items, bytes_)

    def _expire(self, call: Call) -> None:
        if call.done:
            return
        replica_id, was_sent = "", isinstance(call.place, (_Place, NativeCall))
        if isinstance(call.place, _Place):
            replica_id = call.place.connection.peer.facts.replica_id
        self._withdraw(call)
        outcomes.fail(call, outcomes.expired(replica_id, may_have_executed=was_sent))

    def _withdraw(self, call: Call) -> None:
        self._row.give_up(call)
        place = call.place
        if isinstance(place, _Place):
            self._take_off(call)
            place.connection.cancel(place.call_id)
        elif place is not None:  # a native call, or the task that waits for its arguments
            place.cancel()

    def close(self, reason: str) -> None:
        """Fail what waits and every later call; calls on their way go on."""
        self._closed_reason = reason
        self._fail_waiting()
        if self._placed is not None:
            self._placed.close(reason)
        if self._backoff_timer is not None:
            self._backoff_timer.cancel()
            self._backoff_timer = None
        if self._replicas is not None:
            self._replicas.update(())
            self._reporter.remove(self.tally)
