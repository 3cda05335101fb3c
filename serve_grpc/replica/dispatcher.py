"""From frames to invocations and back, on the replica's main loop.

Admission is exact: a request gets a slot of Serve's own `max_ongoing_requests` semaphore, which
requests by reference share, or stands by where slots are about to be free (`standby`), or is turned
away at once. A session that was turned away is told, in turn, when a slot is free. Invariant: each
invocation whose code runs holds one slot, until it is released (`_on_outcome`, `on_spare_slots`) or
the executor passes it on.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable

from serve_grpc._generated.replica_pb2 import Error, RequestContext
from serve_grpc._serve.lending import Desk
from serve_grpc._serve.replicas import ReplicaAccess
from serve_grpc._serve.requests import generate_request_id
from serve_grpc._serve.tracing import Scope, is_tracing
from serve_grpc.allow_list import AllowList
from serve_grpc.config import Settings
from serve_grpc.errors import MessageTooLargeError
from serve_grpc.payload import Payload
from serve_grpc.protocol.replica import Arrival, InboundRequest
from serve_grpc.protocol.status import message_from_error
from serve_grpc.replica.executor import Executor
from serve_grpc.replica.gates import ThreadGate
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome
from serve_grpc.replica.sinks import PlainSink, SessionSink
from serve_grpc.replica.standby import STAND_BY_S, StandBy
from serve_grpc.transport.mailbox import Mailbox, mailbox_of
from serve_grpc.transport.server import PlainCall, SessionStream

__all__ = ["ReplicaDispatcher"]


class ReplicaDispatcher:
    """Decides what requests mean. Implements `transport.server.Dispatcher`, and the executor's
    `Outputs`, whose calls come from other threads.

    Args:
        replica: Serve's admission and accounting.
        settings: Limits and windows.
        serializers: The only ones that requests may use; None for all.

    Attributes:
        outcomes: How many requests ended in which way, by the status in the access log.
        rejections: How many were turned away because the replica was full.
    """

    def __init__(
        self, replica: ReplicaAccess, settings: Settings, serializers: AllowList = None
    ) -> None:
        self._replica = replica
        self._settings = settings
        self._standby: StandBy[Invocation] = StandBy()
        self._is_standby_watched = False
        self._executor = Executor(
            replica, self, settings.max_message_bytes, serializers, self._standby
        )
        self._to_main: Mailbox = mailbox_of(replica.main_loop)
        self._to_user: Mailbox = mailbox_of(replica.user_loop)
        self._desk = Desk(replica.replica_id, replica.main_loop)
        self._sinks: dict[SessionStream, SessionSink] = {}
        self._plain_sinks: dict[PlainCall, PlainSink] = {}
        self._turned_away: OrderedDict[SessionStream, None] = OrderedDict()
        self._is_tracing = is_tracing()
        self.outcomes: Counter[str] = Counter()
        self.rejections = 0
        replica.on_slot_released(self._on_slot_released)

    def __repr__(self) -> str:
        running = sum(len(sink.running) for sink in self._sinks.values()) + len(self._plain_sinks)
        return (
            f"<ReplicaDispatcher {running} running over {len(self._sinks)} sessions, "
            f"{len(self._turned_away)} waiting to be told>"
        )

    def ongoing(self) -> int:
        """Requests that run on the replica, over all transports."""
        return self._replica.ongoing()

    def max_ongoing_requests(self) -> int:
        """How many may run at once."""
        return self._replica.max_ongoing_requests

    def standby(self) -> int:
        """How many requests more than that each session may send."""
        return self._standby_size() // max(1, len(self._sinks))

    def _standby_size(self) -> int:
        # Sessions that were turned away stand in a row of their own, which came first.
        return 0 if self._turned_away else self._standby.size(self.max_ongoing_requests())

    # ------------------------------------------------------------ sessions

    def on_arrival(self, stream: SessionStream, arrival: Arrival) -> None:
        """Handle what one message of a caller said."""
        sink = self._sinks.get(stream)
        if arrival.requests:
            if sink is None:
                sink = self._sinks[stream] = SessionSink(stream, self._hold)
                self._desk.open(stream.session, sink.running)
            self._start(stream, sink, arrival.requests)
        if sink is None:
            return
        running = sink.running
        for call_id, items, bytes_ in arrival.credits:
            invocation = running.get(call_id)
            if invocation is not None:
                self._to_user.run(self._executor.grant, invocation, items, bytes_)
        if arrival.cancelled:
            self._cancel(running[call_id] for call_id in arrival.cancelled if call_id in running)

    def _start(
        self, stream: SessionStream, sink: SessionSink, requests: list[InboundRequest]
    ) -> None:
        admitted = []
        standing_by = 0
        for inbound in requests:
            reserved_slot = inbound.request.reserved_slot
            if reserved_slot:
                if not self._replica.try_claim(reserved_slot):
                    text = f"no slot is reserved by the name {reserved_slot!r}"
                    error = Error(code=Error.INVALID_REQUEST, message=text)
                    stream.session.fail(inbound.id, error)
                    continue
            elif not self._replica.try_admit():
                if self._has_standby_room():
                    self._stand_by(self._invocation(sink, inbound))
                    standing_by += 1
                else:
                    self._turn_away(stream, inbound.id)
                continue
            admitted.append(self._invocation(sink, inbound))
        if admitted or standing_by:
            self._to_user.run(self._executor.submit, admitted, standing_by)

    def _invocation(self, sink: SessionSink, inbound: InboundRequest) -> Invocation:
        invocation = _from_session(sink, inbound)
        if self._is_tracing or inbound.request.HasField("context"):
            invocation.scope = Scope(inbound.request.context)
        invocation.is_held = sink.is_full
        sink.running[inbound.id] = invocation
        return invocation

    def _turn_away(self, stream: SessionStream, call_id: int) -> None:
        if stream.session.reject(call_id):  # else its caller gave it up, and waits for no slot
            self.rejections += 1
            self._turned_away[stream] = None

    def _has_standby_room(self) -> bool:
        # Twice what callers were told: slots change hands while requests arrive that were sent by
        # an older number.
        return len(self._standby) < 2 * self._standby_size()

    def _stand_by(self, invocation: Invocation) -> None:
        self._standby.add(invocation, self._replica.main_loop.time())
        self._watch_standby()

    def _watch_standby(self) -> None:
        if self._standby and not self._is_standby_watched:
            self._is_standby_watched = True
            loop = self._replica.main_loop
            # uvloop calls timers first; what was ready when the process had to pause may be all
            # that the row waits for.
            loop.call_later(STAND_BY_S, loop.call_soon, self._after_standby)

    def _after_standby(self) -> None:
        self._is_standby_watched = False
        for invocation in self._standby.take_late(self._replica.main_loop.time()):
            sink = invocation.sink
            assert isinstance(sink, SessionSink)
            sink.running.pop(invocation.call_id, None)
            if sink.stream in self._sinks:
                self._turn_away(sink.stream, invocation.call_id)
                sink.stream.kick()
        self._watch_standby()

    def on_session_closed(self, stream: SessionStream, call_ids: list[int]) -> None:
        """Cancel what the caller left behind."""
        self._turned_away.pop(stream, None)
        sink = self._sinks.pop(stream, None)
        if sink is not None:
            sink.close()
            self._desk.close(stream.session)
            self._cancel([sink.running[i] for i in call_ids if i in sink.running])

    def _hold(self, streams: list[Invocation], is_held: bool) -> None:
        self._to_user.run(self._executor.hold, streams, is_held)

    def _cancel(self, invocations: Iterable[Invocation]) -> None:
        for invocation in invocations:
            self._to_user.run(self._executor.cancel, invocation, CancelReason.CALLER)

    def _on_slot_released(self) -> None:
        if self._standby and self._replica.try_admit():
            self._to_user.run(self._executor.add_slot)
        # One free slot, one caller told; it goes to the end of the row if it is turned away again.
        elif self._turned_away:
            stream, _ = self._turned_away.popitem(last=False)
            stream.session.slot_free()
            stream.kick()

    # ------------------------------------------------------------ the plain door

    def on_plain_call(self, call: PlainCall) -> None:
        """Start a request through `Call` or `CallStream`."""
        if self._replica.is_shutting_down:
            call.end(Error(code=Error.DRAINING, message="the replica is shutting down"))
            return
        size, limit = len(call.request.payload), self._settings.max_message_bytes
        if size > limit:
            call.end(message_from_error(MessageTooLargeError(size, limit, "request")))
            return
        if not self._replica.try_admit():
            self.rejections += 1
            text = f"the replica is at max_ongoing_requests={self.max_ongoing_requests()}"
            call.end(Error(code=Error.OVERLOADED, message=text))
            return
        credit = self._settings.stream_window_items, self._settings.stream_window_bytes
        sink = PlainSink(call)
        invocation = sink.running = _from_plain_call(sink, call, credit)
        if self._is_tracing:
            invocation.scope = Scope(RequestContext(trace=call.trace))
        self._plain_sinks[call] = sink
        call.on_taken = lambda size: self._to_user.run(self._executor.grant, invocation, 1, size)
        self._to_user.run(self._executor.submit, [invocation])

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """Cancel a request whose plain caller went away."""
        sink = self._plain_sinks.pop(call, None)
        if sink is not None and sink.running is not None:
            self._cancel([sink.running])

    # ------------------------------------------------------------ outputs of the executor

    def on_item(self, invocation: Invocation, payload: Payload) -> None:
        """One item; from any thread."""
        self._to_main.run(_place, invocation, payload)

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        """The end; from the user's loop."""
        self._to_main.run(self._on_outcome, invocation, outcome)

    def on_spare_slots(self, count: int) -> None:
        """Slots that are free, and nobody stands by for; from the user's loop."""
        for _ in range(count):
            self._to_main.run(self._replica.release)

    def _on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        # Neither of the three is left out because another one failed.
        try:
            if not outcome.holds_slot:
                self._standby.on_duration(outcome.latency_ms)
                if not outcome.passes_slot_on:
                    # The slot is free before the reply leaves, so the load on the reply is true.
                    self._replica.release()
        finally:
            try:
                invocation.sink.finish(invocation, outcome.payload, outcome.error)
            finally:
                self._record(invocation, outcome)

    def _record(self, invocation: Invocation, outcome: Outcome) -> None:
        self.outcomes[outcome.status] += 1
        self._replica.record(
            method_name=invocation.method,
            route=invocation.route,
            request_id=invocation.request_id,
            client=invocation.client,
            latency_ms=outcome.latency_ms,
            status=outcome.status,
            exception_type=outcome.exception_type,
        )


def _place(invocation: Invocation, payload: Payload) -> None:
    invocation.sink.item(invocation, payload)
    gate = invocation.gate
    if isinstance(gate, ThreadGate):
        gate.placed(len(payload))


def _deadline_s(timeout_s: float | None) -> float | None:
    return time.monotonic() + timeout_s if timeout_s else None


def _internal_id(request_id: str) -> str:
    """An id that no other request of this process has; children are registered under it."""
    return f"{request_id}/{next(_serial)}"


_serial = itertools.count(1)


def _from_session(sink: SessionSink, inbound: InboundRequest) -> Invocation:
    template, request = inbound.template, inbound.request
    timeout_ms = request.timeout_ms
    request_id = request.request_id
    invocation = Invocation(
        sink,
        inbound.id,
        template.method,
        template.request_serializer,
        template.response_serializer,
        template.stream,
        inbound.payload,
        request_id,
        _internal_id(request_id),
        template.route,
        request.multiplexed_model_id,
        request.session_id,
        request.client,
        _deadline_s(timeout_ms / 1000) if timeout_ms else None,
    )
    if invocation.is_stream:
        invocation.credit = request.credit_items, request.credit_bytes
    return invocation


def _from_plain_call(sink: PlainSink, call: PlainCall, credit: tuple[int, int]) -> Invocation:
    request = call.request
    serializer = request.request_serializer or "cloudpickle"
    request_id = request.request_id or generate_request_id()
    return Invocation(
        sink=sink,
        call_id=0,
        method=request.method or "__call__",
        request_serializer=serializer,
        response_serializer=request.response_serializer or serializer,
        is_stream=call.is_stream,
        payload=request.payload,
        request_id=request_id,
        internal_request_id=_internal_id(request_id),
        multiplexed_model_id=request.multiplexed_model_id,
        session_id=request.session_id,
        deadline_s=_deadline_s(call.timeout_s),
        credit=credit,
    )
