"""From frames to invocations and back, on the replica's main loop.

Requests ask for a slot (`admission`) and go to the executor on the user's loop; cancels and credit
follow them there. Items and outcomes come back to where the request came from (`replies`).
Invariants: each invocation whose code runs holds one slot; whatever happens to one request of a
message, the others get what is theirs. Serve's metrics and log are told last, when nothing of ours
is half changed: that code is not ours, and may raise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from serve_grpc._generated.replica_pb2 import Error, RequestContext
from serve_grpc._serve.lending import Desk
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc._serve.tracing import Scope, is_tracing
from serve_grpc.allow_list import AllowList, takes_pickle
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.config import Settings
from serve_grpc.debugging import is_debugged
from serve_grpc.errors import MessageTooLargeError
from serve_grpc.mailbox import Mailbox, mailbox_of
from serve_grpc.payload import Payload, is_stored
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.protocol.replica import Arrival, InboundRequest
from serve_grpc.protocol.status import message_from_error
from serve_grpc.replica.admission import Admission
from serve_grpc.replica.debug_lines import follow
from serve_grpc.replica.executor import STARTS_PER_TURN, STARTS_PER_TURN_LOCAL, Executor
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome
from serve_grpc.replica.making import from_plain_call, from_session, inputs_of, plain_input_of
from serve_grpc.replica.replies import PlainReplies, SessionReplies
from serve_grpc.streams.credit_gates import ThreadGate

__all__ = ["ReplicaDispatcher"]

_ITEM = InputKind.ITEM


class ReplicaDispatcher:
    """Decides what requests mean. Implements the server's `Dispatcher`, and the executor's
    `Outputs`, whose calls come from other threads.

    Args:
        replica: Serve's admission and accounting.
        settings: Limits and windows.
        serializers: The only ones that requests may use; None for all.

    Attributes:
        outcomes: How many requests ended in which way, by the status in the access log.
        admission: The replica's slots, and who waits for one.
    """

    def __init__(
        self, replica: ReplicaAdapter, settings: Settings, serializers: AllowList = None
    ) -> None:
        self._replica = replica
        self._settings = settings
        # Of each stream that is an argument; and of streams to plain clients, who grant nothing.
        self._window = settings.stream_window_items, settings.stream_window_bytes
        self._takes_pickle = takes_pickle(serializers)
        self.admission = Admission(replica, self._use_slot, self._on_late)
        self._executor = Executor(
            replica, self, settings.max_message_bytes, serializers, self.admission.standby
        )
        self._to_main: Mailbox = mailbox_of(replica.main_loop)
        self._to_user: Mailbox = mailbox_of(replica.user_loop)
        self._desk = Desk(replica.replica_id, replica.main_loop)
        self._replies: dict[ReplicaPump, SessionReplies] = {}
        self._plain_replies: dict[PlainCall, PlainReplies] = {}
        self._is_tracing = is_tracing()  # settled before the replica takes its first request
        self.outcomes: Counter[str] = Counter()

    def __repr__(self) -> str:
        running = sum(len(replies.running) for replies in self._replies.values()) + len(
            self._plain_replies
        )
        return (
            f"<ReplicaDispatcher {running} running over {len(self._replies)} sessions, "
            f"{self.admission!r}>"
        )

    def ongoing(self) -> int:
        """Requests that run on the replica, over all transports."""
        return self._replica.ongoing()

    def max_ongoing_requests(self) -> int:
        """How many may run at once."""
        return self._replica.max_ongoing_requests

    def standby(self) -> int:
        """How many requests more than that each session may send."""
        # Shared out: whoever is told of room may use it, without asking the others.
        return self.admission.standby_size() // max(1, len(self._replies))

    @property
    def rejections(self) -> int:
        """How many requests were turned away because the replica was full."""
        return self.admission.rejections

    # ------------------------------------------------------------ sessions

    def on_arrival(self, stream: ReplicaPump, arrival: Arrival) -> None:
        """Handle what one message of a caller said."""
        # In the order of replica.proto: credit and cancels may be for requests that came in this
        # very message.
        replies = self._replies.get(stream)
        if arrival.requests:
            if replies is None:
                replies = self._replies[stream] = SessionReplies(stream, self._hold)
                self._desk.open(stream.session, replies.running)
            self._start(stream, replies, arrival.requests)
        if replies is None:
            return
        running = replies.running
        for call_id, items, bytes_ in arrival.credits:
            invocation = running.get(call_id)
            if invocation is not None:
                self._to_user.run(self._executor.grant, invocation, items, bytes_)
        for item in arrival.inputs:
            stream.counters.inputs_received += item.kind == _ITEM
            stream.counters.input_bytes_received += len(item.payload)
            invocation = running.get(item.call_id)
            # None: it was turned away, and its caller sends all of it elsewhere.
            if invocation is not None and invocation.inputs is not None:
                invocation.inputs.feed(item)
        if arrival.cancelled:
            self._cancel(running[call_id] for call_id in arrival.cancelled if call_id in running)

    def _start(
        self, stream: ReplicaPump, replies: SessionReplies, requests: list[InboundRequest]
    ) -> None:
        admission, is_followed = self.admission, is_debugged()
        admitted = []
        standing_by = 0
        try:
            for inbound in requests:
                reserved_slot = inbound.request.reserved_slot
                if admission.take_slot(reserved_slot):
                    invocation = self._invocation(replies, inbound, is_followed)
                    admitted.append(invocation)
                    if is_followed:
                        where = (inbound.id, stream.session.name)
                        follow(invocation.request_id, "has a slot, call %d of session %s", *where)
                elif reserved_slot:
                    text = f"no slot is reserved by the name {reserved_slot!r}"
                    error = Error(code=Error.INVALID_REQUEST, message=text)
                    stream.session.fail(inbound.id, error)
                elif admission.has_standby_room():
                    admission.stand_by(self._invocation(replies, inbound, is_followed))
                    standing_by += 1
                else:
                    admission.turn_away(stream, inbound.id, inbound.request.request_id)
        finally:
            # Whatever became of the others: a slot that was taken is given back by the executor.
            if admitted or standing_by:
                starts = STARTS_PER_TURN_LOCAL if stream.carrier == "local" else STARTS_PER_TURN
                self._to_user.run(self._executor.submit, admitted, standing_by, starts)

    def _invocation(
        self, replies: SessionReplies, inbound: InboundRequest, is_followed: bool
    ) -> Invocation:
        invocation = from_session(replies, inbound)
        if self._is_tracing or inbound.request.HasField("context"):
            invocation.scope = Scope(inbound.request.context)
        invocation.is_held = replies.is_full
        if is_followed:
            invocation.is_followed = True
        if type(inbound.payload) is not bytes and is_stored(inbound.payload):
            replies.stream.counters.stored_received += 1
        if inbound.template.has_inputs:
            invocation.inputs = inputs_of(
                replies, inbound, self._window, self._to_main, may_unpickle=self._takes_pickle
            )
        replies.running[inbound.id] = invocation
        return invocation

    def _use_slot(self) -> None:
        self._to_user.run(self._executor.add_slot)

    def _on_late(self, invocation: Invocation) -> None:
        replies = invocation.replies
        # A request through the plain door never stands by: its client is told at once.
        assert isinstance(replies, SessionReplies)
        replies.running.pop(invocation.call_id, None)
        if replies.stream in self._replies:  # else its session is over, and nobody to be told
            self.admission.turn_away(replies.stream, invocation.call_id, invocation.request_id)
            replies.stream.kick()

    def on_session_closed(self, stream: ReplicaPump, call_ids: list[int]) -> None:
        """Cancel what the caller left behind."""
        self.admission.forget(stream)
        replies = self._replies.pop(stream, None)
        if replies is not None:
            replies.close()
            self._desk.close(stream.session)
            self._cancel([replies.running[i] for i in call_ids if i in replies.running])

    def _hold(self, streams: list[Invocation], is_held: bool) -> None:
        self._to_user.run(self._executor.hold, streams, is_held)

    def _cancel(self, invocations: Iterable[Invocation]) -> None:
        for invocation in invocations:
            self._to_user.run(self._executor.cancel, invocation, CancelReason.CALLER)

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
        if not self.admission.take_slot(""):
            self.admission.rejections += 1
            if is_debugged():
                follow(call.request.request_id, "turned away at the plain door")
            text = f"the replica is at max_ongoing_requests={self.max_ongoing_requests()}"
            call.end(Error(code=Error.OVERLOADED, message=text))
            return
        replies = PlainReplies(call)
        invocation = replies.running = from_plain_call(replies, call, self._window)
        serializer, may = invocation.request_serializer, self._takes_pickle
        invocation.inputs = plain_input_of(
            call, serializer, self._window, self._to_main, may_unpickle=may
        )
        invocation.is_followed = is_debugged()
        if self._is_tracing:
            invocation.scope = Scope(RequestContext(trace=call.trace))
        self._plain_replies[call] = replies
        # A plain client grants nothing: what gRPC has taken from us is as good as consumed.
        call.on_taken = lambda size: self._to_user.run(self._executor.grant, invocation, 1, size)
        self._to_user.run(self._executor.submit, [invocation])

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """Cancel a request whose plain caller went away."""
        replies = self._plain_replies.pop(call, None)
        if replies is not None and replies.running is not None:
            self._cancel([replies.running])

    # ------------------------------------------------------------ outputs of the executor

    def on_item(self, invocation: Invocation, payload: Payload) -> None:
        """Send one item of a stream; from any thread."""
        self._to_main.run(_hand_over_item, invocation, payload)

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        """Tell the caller how a request ended, and give its slot back; from the user's loop."""
        self._to_main.run(self._on_outcome, invocation, outcome)

    def on_spare_slots(self, count: int) -> None:
        """Give back slots that nobody stands by for; from the user's loop."""
        for _ in range(count):
            self._to_main.run(self.admission.give_back)

    def _on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        # Slot, caller and Serve each get theirs, whichever of the three fails.
        try:
            if not outcome.holds_slot:
                self.admission.standby.on_duration(outcome.latency_ms)
                if not outcome.passes_slot_on:
                    # The slot is free before the reply leaves, so the load on the reply is true.
                    self.admission.give_back()
        finally:
            try:
                invocation.replies.finish(invocation, outcome.payload, outcome.error)
            finally:
                self._record(invocation, outcome)

    def _record(self, invocation: Invocation, outcome: Outcome) -> None:
        self.outcomes[outcome.status] += 1
        if invocation.is_followed:
            how = (outcome.status, outcome.latency_ms)
            follow(invocation.request_id, "ended, %s after %.1f ms", *how)
        self._replica.record(
            method_name=invocation.method,
            route=invocation.route,
            request_id=invocation.request_id,
            client=invocation.client,
            latency_ms=outcome.latency_ms,
            status=outcome.status,
            exception_type=outcome.exception_type,
        )


def _hand_over_item(invocation: Invocation, payload: Payload) -> None:
    invocation.replies.item(invocation, payload)
    # Told by the loop that took it over: a generator in a thread could otherwise fill the mailbox
    # while this loop is kept from running.
    gate = invocation.gate
    if isinstance(gate, ThreadGate):
        gate.taken_over(len(payload))
