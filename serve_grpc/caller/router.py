"""Picks a replica for each call of one deployment, or lets the call wait its turn.

On the loop of Serve's own router, where the control plane's news arrive. Waiting calls stand in one
row, first come, first served; they move when one of our calls ends, a replica that turned us away
calls back, or the replica set changes. Only where none of that can happen a timer looks again.
Invariants: a call is in the row, on a connection, or done; while calls wait, no replica has room,
so news of one concern that one alone, except while calls came back, or wait for a replica they
prefer to open its first session: then all are looked at.
"""

from __future__ import annotations

import copy
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
from serve_grpc.caller.entrance import Arguments, Entrance
from serve_grpc.caller.fallback import NativeCall
from serve_grpc.caller.natives import NativeCalls
from serve_grpc.caller.pause import Pause
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

    def grant(self, items: int, bytes_: int) -> None:
        self.connection.grant(self.call_id, items, bytes_)


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
        watch_serve: To be called when a call waits; ends it when Serve is gone.
    """

    def __init__(self, access: RouterAccess, settings: Settings) -> None:
        check_process_list(settings.serializers)
        self._access = access
        self._settings = settings
        self.tally = Tally(access)
        self._entrance = Entrance(access, self.tally, self)
        self._row = WaitingCalls(self.tally)
        self._sequence = itertools.count()
        self._budget = RetryBudget(time.monotonic())
        self._natives = NativeCalls(self._budget)
        self._pause = Pause(access, self._after_pause)
        self._has_returned = False  # calls stand in the row again that were on a replica
        self._closed_reason: str | None = None
        self.is_ready = False
        self.is_tracing = is_tracing()
        self.serializers: AllowList = None
        self.fallback_reason: str | None = None
        self.is_native = False
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
        watch = ServeWatch(access, self._replicas, self._has_waiting, self._on_serve_gone)
        self.watch_serve = watch.begin
        self._reporter = reporter_of(pool, access.actor_id)
        self._reporter.add(self.tally)
        access.subscribe(self._on_replicas)
        access.carry_requests(self._placed.send)

    # ------------------------------------------------------------ the replica set

    def _on_replicas(self, replica_set: ReplicaSet) -> None:
        try:
            self.mailbox.enter(self._update, replica_set)
        except Exception:
            # Serve's long poll would stop for good if an error reached it.
            logger.exception("could not follow the replicas of %s", self._access.deployment_name)

    def _update(self, replica_set: ReplicaSet) -> None:
        if self._closed_reason is not None:
            return
        reachable, is_configured = replica_set.reachable, self._access.is_configured
        was_ready = self.is_ready
        if replica_set.replicas and is_configured:
            self.is_ready = True
            self.fallback_reason = None if reachable else "has no serve_grpc endpoint"
        if is_configured:
            self.is_native = self._access.has_custom_request_router or bool(self.fallback_reason)
        if self.is_ready and not was_ready and not self.is_native:
            for call in self._row:
                self.count(call)
        self.serializers = replica_set.serializers
        self._replicas.update(reachable)
        self._placed.on_replicas()
        self._pump()
        if is_configured:
            self._entrance.on_configured(has_replicas=bool(replica_set.replicas))

    def start_natively(self, call: Call) -> None:
        """Leave a call to Serve's own router."""
        if self._closed_reason is not None:
            outcomes.fail(call, ServeGrpcError(self._closed_reason))
            return
        self._natives.start(call, is_fallback=self.fallback_reason is not None)
        self.watch_serve()

    def count(self, call: Call, *, is_refused: bool = False) -> None:
        """Count a call as Serve does; those that go over Serve's transport are counted there."""
        envelope = call.fields.envelope
        self._access.on_call(envelope.route, envelope.app_name)
        if not is_refused:
            self._access.on_routed(envelope.route)

    # ------------------------------------------------------------ new calls

    def submit(self, call: Call, arguments: Arguments | None = None) -> None:
        """Send a call, or let it wait; once for each call.

        Args:
            call: With its payload, unless `arguments` gives it one.
            arguments: Waits for the call's arguments.
        """
        if call.done:
            return
        self._budget.on_call()
        if call.is_cancelled:
            call.fail(RequestCancelledError(call.fields.request_id))
            return
        if self._closed_reason is not None:
            outcomes.fail(call, ServeGrpcError(self._closed_reason))
            return
        if call.deadline_s is not None:
            left_s = max(0.0, call.deadline_s - time.monotonic())
            call.expiry = self.mailbox.call_later(left_s, self._expire, call)
        self._entrance.enter(call, arguments)

    def route(self, call: Call, connection: Connection | None) -> None:
        """Send a call that was let in, or let it wait if there is no connection for it."""
        call.sequence = next(self._sequence)
        if self.is_ready:
            self.count(call)
        if connection is not None:
            self._send(call, connection, is_new=True)
            return
        self._row.enter(call)
        self.watch_serve()
        if self._is_over:
            self._fail_waiting()  # its arguments came too late
        elif self._replicas:
            self._ensure_progress()
        else:
            self._access.ask_for_first_replica()

    def pick_for_new(self, call: Call) -> Connection | None:
        """A connection that takes the call now, while nobody waits before it."""
        if self._row.head() is not None:
            return None
        return self._replicas.pick(call.fields.multiplexed_model_id)

    def room_to_come(self) -> int:
        """How many calls will have room once sessions are open that are being opened."""
        return self._replicas.room_to_come

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
        if self._is_over:
            self._fail_waiting()  # no replica will come, and nothing else would wake them
        while self.is_native and (call := self._row.leave()) is not None:
            self.start_natively(call)
        while (call := self._row.head()) is not None:
            connection = self._replicas.pick(call.fields.multiplexed_model_id)
            if connection is None:
                break
            self._row.leave()
            self._send(call, connection)
        self._ensure_progress()

    @property
    def _is_over(self) -> bool:
        return self._closed_reason is not None or self._access.is_unavailable

    def _fail_waiting(self) -> None:
        waiting = [call for call, _ in self._entrance.take_all()]
        while (call := self._row.leave()) is not None:
            waiting.append(call)
        for call in waiting:
            if self._closed_reason is not None:
                outcomes.fail(call, ServeGrpcError(self._closed_reason))
            else:
                outcomes.fail_for_good(call, self._access.unavailable())

    def _return(self, call: Call) -> None:
        """Let a call that was on a replica wait again."""
        self._row.enter(call)
        self.watch_serve()
        if not self._has_returned:
            self._has_returned = True
            # The news of a replica that has left the set reach no one, so they cannot wake it.
            self.mailbox.post(self._after_return)

    def _after_return(self) -> None:
        if self._has_returned:
            self._pump()

    def on_change(self, connection: Connection) -> None:
        """A replica has room again, or turned calls away, or was lost."""
        if self._placed:
            self._placed.on_change(connection)
        if not self._row:
            return
        if self._has_returned or self._replicas.is_opening or self.is_native or connection.is_down:
            self._pump()  # other replicas may have had room all the time
            return
        while connection.takes_calls and (call := self._row.leave()) is not None:
            self._send(call, connection)
        if connection.peer.blocked:
            self._ensure_progress()

    def _ensure_progress(self) -> None:
        """While calls wait and only a refused replica could take them, look again after a pause."""
        if self._row and self._replicas.has_blocked:
            self._pause.begin()

    def _after_pause(self) -> None:
        self._replicas.unblock()
        self._pump()

    # ------------------------------------------------------------ what becomes of sent calls

    def on_reply(self, call: Call, kind: int, payload: Payload, error: Error | None) -> None:
        """One event of a call."""
        if kind == _ITEM:
            call.add_item(payload)
            return
        connection = self._take_off(call)
        self._pause.times = 0
        if error is None:
            if self._replicas.outliers or connection.peer.penalised:
                self._replicas.on_success(connection, call)
        elif error.code in outcomes.FAILURES:
            self._replicas.on_failure(connection, call)
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
        if isinstance(call.place, (_Place, NativeCall)):
            call.place.grant(items, bytes_)

    def _expire(self, call: Call) -> None:
        if call.done:
            return
        replica_id, was_sent = "", isinstance(call.place, (_Place, NativeCall))
        if isinstance(call.place, _Place):
            replica_id = call.place.connection.peer.facts.replica_id
        self._withdraw(call)
        why = "" if replica_id else self._replicas.trouble
        outcomes.fail(call, outcomes.expired(replica_id, may_have_executed=was_sent, trouble=why))

    def _withdraw(self, call: Call) -> None:
        self._entrance.give_up(call)
        self._row.give_up(call)
        place = call.place
        if isinstance(place, _Place):
            self._take_off(call)
            place.connection.cancel(place.call_id)
        elif place is not None:  # a native call, or the task that waits for its arguments
            place.cancel()

    def _has_waiting(self) -> bool:
        return bool(self._entrance or self._natives or self._row.head())

    def _on_serve_gone(self) -> None:
        self.close("Ray Serve was shut down")
        self._natives.fail_all("Ray Serve was shut down")

    def closed_twin(self, reason: str) -> Router:
        """For handles that refuse every call, while others go on to use this router."""
        twin = copy.copy(self)
        twin._closed_reason = reason
        return twin

    def close(self, reason: str) -> None:
        """Fail what waits and every later call; calls on their way go on."""
        self._closed_reason = reason
        self._entrance.close()
        self._fail_waiting()
        self._placed.close(reason)
        self._pause.close()
        self._replicas.update(())
        self._reporter.remove(self.tally)
