"""The way of one call to a replica and back, from `remote()` to its end.

A delivery has the call, and whatever the call holds on its way: a timer for its deadline, a turn
in a line, a slot on a replica, a number in a session, a loan of ObjectRefs. Where the call is sent
is chosen by its chooser: our own line, or Serve's router. Everything after that is the same for
both and stands here.

Invariants: while it is on a connection, `connection` is set and the replica's `in_flight` counts
it, and `stage` is None. It ends once, in `end`, which gives back all that it holds. On the
transport's loop, but for a call that ends before it is submitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.tracing import RouteSpan
from serve_grpc.allow_list import takes_pickle
from serve_grpc.caller.call import Call
from serve_grpc.caller.choosing import Chooser, Stage
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.events import note
from serve_grpc.caller.inputs import Inputs
from serve_grpc.caller.lending import Loan
from serve_grpc.caller.outcomes import (
    Cancelled,
    Expired,
    GivenUp,
    Lost,
    Outcome,
    Result,
    last_word,
)
from serve_grpc.caller.oversize import Fetching, Putting
from serve_grpc.caller.refusal import not_sendable, refusal_of
from serve_grpc.debugging import is_debugged
from serve_grpc.payload import Payload, Segments, is_stored
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.routing.peer import ReplicaFacts

__all__ = ["Delivery"]

# As plain integers: an enum's comparison runs in Python's slow lane, once for each reply.
_RESULT, _ITEM = CallEventKind.RESULT.value, CallEventKind.ITEM.value


class Delivery:
    """The delivery of one call.

    Args:
        call: What is to be delivered; from here on it ends by this object only.
        chooser: Where it is sent.
        deadline_s: On `time.monotonic`, None for none.
        is_idempotent: Whether the call may be repeated after it may have started.
        ended: Where the kind of its outcome is noted; None if nobody counts it.

    Attributes:
        call, deadline_s, is_idempotent, ended: As given.
        chooser: May be replaced while the call is not on its way.
        connection: What it was sent over, while it is there; else None.
        stage: Where it is, if that is not a connection.
        sequence: Where it stands among the calls of its line.
        queued_s: When it began to wait for a replica, on `time.monotonic`; 0 if it never did.
        has_items: Whether an item of its stream came; what has begun cannot be repeated.
        may_have_executed: Whether an earlier try, which was lost, may have started.
        loan: The ObjectRefs that its arguments name, from when it was sent to its end.
        inputs: The streams among its arguments, until its end; None if there are none.
        make_serve_call: Makes the call over Serve's own router; set where that may be needed.
        span: Of its trace, until its end; None if it is not traced.
    """

    __slots__ = (
        "_call_id",
        "_expiry",
        "call",
        "chooser",
        "connection",
        "deadline_s",
        "ended",
        "has_items",
        "inputs",
        "is_idempotent",
        "loan",
        "make_serve_call",
        "may_have_executed",
        "queued_s",
        "sequence",
        "span",
        "stage",
    )

    # Set when the call is let in, and when it is sent.
    sequence: int
    _call_id: int

    def __init__(
        self,
        call: Call,
        chooser: Chooser[Delivery],
        *,
        deadline_s: float | None = None,
        is_idempotent: bool = False,
        ended: list[str] | None = None,
    ) -> None:
        self.call = call
        self.chooser = chooser
        self.deadline_s = deadline_s
        self.is_idempotent = is_idempotent
        self.connection: Connection | None = None
        self.stage: Stage[Delivery] | None = None
        self.queued_s = 0.0
        self.has_items = False
        self.may_have_executed = False
        self.loan: Loan | None = None
        self.inputs: Inputs | None = None
        self.make_serve_call: Callable[[], Any] | None = None
        self.span: RouteSpan | None = None
        self.ended = ended
        self._expiry: asyncio.TimerHandle | None = None
        call.delivery = self

    def __repr__(self) -> str:
        return f"<Delivery of {self.call!r}>"

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return self.call.outcome is not None

    @property
    def request_id(self) -> str:
        """The call's, as logs and errors name it."""
        return self.call.fields.request_id

    def describe(self) -> str:
        """Where the call is, in a word; from any thread."""
        stage = self.stage
        return "open" if stage is None else stage.describe()

    def expire_after(self, left_s: float) -> None:
        """Let the call end when its deadline passes, in so many seconds."""
        self._expiry = self.call.mailbox.call_later(max(0.0, left_s), self._expire)

    # ------------------------------------------------------------ to the replica

    def send(self, connection: Connection, *, is_new: bool = False) -> bool:
        """Send the call over a connection that takes it; `is_new` as of `Connection.send`.

        Returns:
            False if it was not: it cannot be, and has ended, or it goes by Ray's object store, and
            its chooser is asked again when it is there.
        """
        facts = connection.peer.facts
        # Looked at here, for the usual call passes all three and is spared a function call.
        may_be_refused = (
            self.deadline_s is not None
            or facts.serializers is not None
            or len(self.call.fields.payload) > connection.peer_max_message_bytes
            or self.inputs is not None
        )
        if may_be_refused:
            payload = self.call.fields.payload
            refusal = refusal_of(self.call.fields, self.deadline_s, connection)
            if refusal is not None:
                self.end(refusal)
                return False
            if len(payload) > connection.peer_max_message_bytes and not is_stored(payload):
                self.stage = Putting(self, payload)
                return False
        try:
            self._call_id = connection.send(self, is_new=is_new)
        except ValueError as reason:
            self.end(not_sendable(reason, self.request_id))
            return False
        self.connection = connection
        self.call.replica_id = replica_id = facts.replica_id
        self.chooser.on_sent(replica_id)
        if self.inputs is not None:
            self.inputs.on_sent(self, connection, self._call_id)
        if is_debugged():
            note("request %s: sent to %s as call %d", self.request_id, replica_id, self._call_id)
        return True

    def on_put(self, payload: Segments) -> None:
        """The request is in Ray's object store: it may be sent."""
        self.stage = None
        self.call.fields.payload = payload
        if self.loan is not None:  # of an earlier try, to a replica that took it as it was
            self.loan.refs = payload.refs
        self.chooser.on_ready(self)

    def _leave(self) -> Connection:
        """Note that the call is no longer on its replica; returns the connection it was on."""
        # The one place where a call is counted off, done before all that may fail: one that stays
        # counted by mistake makes the replica look fuller for as long as it lives.
        connection = self.connection
        assert connection is not None
        self.connection = None
        peer = connection.peer
        peer.in_flight -= 1
        self.chooser.on_left(peer.facts.replica_id)
        return connection

    @property
    def was_read(self) -> bool:
        """Whether the replica has read the request, and did not turn it away."""
        return self.connection is not None and (
            self.has_items or self.connection.was_read(self._call_id)
        )

    # ------------------------------------------------------------ and back

    def on_reply(self, kind: int, payload: Payload, error: Error | None) -> None:
        """One event of the call."""
        if self.call.outcome is not None:
            return  # it was given up while the message was read
        if kind == _ITEM:
            if self.inputs is not None:
                self.inputs.on_read()
            self.has_items = True
            self.call.add_item(payload)
            return
        connection = self._leave()
        self.chooser.on_answered(self, connection, error)
        if type(payload) is Segments and payload.stored is not None:
            self.stage = Fetching(self, payload, connection.peer.facts)
        elif kind == _RESULT:
            self.end(Result(payload))
        else:
            word = last_word(
                kind,
                payload,
                error,
                request_id=self.request_id,
                replica_id=connection.peer.facts.replica_id,
                max_message_bytes=connection.max_message_bytes,
                may_unpickle=takes_pickle(connection.serializers),
            )
            self.end(word)

    def on_rejected(self) -> None:
        """The replica was full, or drains: it turned the call away, or did not read it."""
        if self.call.outcome is not None:
            return
        if self.loan is not None:
            # Nothing of it is held there, so that replica need not be asked when the call ends.
            self.loan.came_back()
        connection = self._leave()
        if self.inputs is not None and not self._takes_inputs_back(self.inputs):
            return
        if is_debugged():
            replica_id = connection.peer.facts.replica_id
            note("request %s: turned away by %s", self.request_id, replica_id)
        self.chooser.on_rejected(self, connection)

    def _takes_inputs_back(self, inputs: Inputs) -> bool:
        """Keep what was sent of them for the next replica; False if the call had to be ended."""
        inputs.on_left(self)
        if inputs.is_spent:
            self.end(GivenUp("its replica turned it away after it had begun", True))
        return not inputs.is_spent

    def on_input_news(self, number: int, items: int, bytes_: int, *, is_closed: bool) -> None:
        """The replica grants more of an input, or wants no more of it."""
        if self.inputs is not None:  # else the call has ended
            self.inputs.on_news(number, items, bytes_, is_closed=is_closed)

    @property
    def may_run_twice(self) -> bool:
        """Whether it may be repeated after a try that may have started."""
        # What has begun to give or to take items cannot: a generator cannot be read twice.
        return (
            self.is_idempotent
            and not self.has_items
            and not (self.inputs is not None and self.inputs.has_sent)
        )

    def on_lost(self, *, may_have_started: bool, reason: str) -> None:
        """The session ended under the call."""
        if self.call.outcome is not None:
            return
        self.lose(self._leave().peer.facts, reason, may_have_started=may_have_started)

    def lose(self, facts: ReplicaFacts, reason: str, *, may_have_started: bool) -> None:
        """The call, or its result, was lost with its replica."""
        self.stage = None
        if self.inputs is not None:
            self.inputs.on_left(self)
        lost = Lost(facts.replica_id, facts.actor_id, reason, may_have_started)
        if is_debugged():
            started = "it may have started" if may_have_started else "it had not started"
            where = facts.replica_id
            note("request %s: lost on %s (%s); %s", self.request_id, where, reason, started)
        if not self.chooser.takes_back(self, lost):
            self.end(lost)
            return
        # For choosers that have not set it: a later end must not deny what this try may have done.
        self.may_have_executed |= may_have_started
        if is_debugged() and not self.done:
            note("request %s: will be sent again", self.request_id)

    # ------------------------------------------------------------ the consumer, and the clock

    def grant(self, items: int, bytes_: int) -> None:
        """The consumer took this much of the stream."""
        if self.connection is not None:
            self.connection.grant(self._call_id, items, bytes_)
        elif self.stage is not None:
            self.stage.grant(items, bytes_)

    def cancel(self) -> None:
        """The consumer gives the call up, wherever it is."""
        self.withdraw(Cancelled())

    def _expire(self) -> None:
        connection, stage = self.connection, self.stage
        if connection is not None:
            self.withdraw(Expired(connection.peer.facts.replica_id, True))
        else:
            may_have_started = stage is not None and stage.may_have_started
            self.withdraw(Expired("", may_have_started, self.chooser.trouble()))

    def withdraw(self, outcome: Outcome) -> None:
        """End the call for a reason of this side, and let go of it wherever it is."""
        if self.call.outcome is not None:
            return
        connection = self.connection
        self.end(outcome)
        # Last: others are sent in its place, and must find this one gone.
        if connection is not None:
            connection.cancel(self._call_id)

    # ------------------------------------------------------------ the end

    def end(self, outcome: Outcome) -> bool:
        """End the call, and give back all it holds; False if it had ended before.

        Every way leads here: an answer, a loss, a cancel, a deadline, a refusal, a fault of ours.
        """
        call = self.call
        if call.outcome is not None:
            return False
        try:
            if self.connection is not None:
                self._leave()
            # Off first, so that nothing the stage does can have the call leave it a second time.
            if self.stage is not None:
                stage, self.stage = self.stage, None
                stage.withdraw(self)
            self.make_serve_call = None  # it holds the arguments
            if self.inputs is not None:
                inputs, self.inputs = self.inputs, None
                inputs.on_end(self)
            if self.may_have_executed:
                outcome.may_have_executed = True
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            if self.loan is not None:
                # An error does not say that the handler is done: in a thread it outlives a cancel.
                self.loan.settle(is_answered=outcome.is_ok)
                self.loan = None  # the response may be kept for long
            # An append and no more, for this may be any thread; `Tally` folds the list.
            if self.ended is not None:
                self.ended.append(outcome.kind)
            if (on_end := self.chooser.on_end) is not None:
                on_end(self, outcome)
            if self.span is not None:
                self._end_span(outcome)
            if is_debugged():
                note("request %s: ended: %s", self.request_id, outcome.kind)
        finally:
            # Whatever failed above, who waits is told: a call that never ends is the worst end.
            call.end(outcome)
        return True

    def is_counted_by_serve(self) -> None:
        """Serve alone counts the call from here on, for its own transport carries it."""
        self.ended = None

    def _end_span(self, outcome: Outcome) -> None:
        # Its processors are not ours and may take their time; they run when no state is changing.
        span, self.span = self.span, None
        assert span is not None
        try:
            self.call.mailbox.post(_end_span, span, outcome.is_cancelled)
        except RuntimeError:
            _end_span(span, outcome.is_cancelled)  # the loop is closed: it disturbs nothing


def _end_span(span: RouteSpan, is_cancelled: bool) -> None:
    span.end(asyncio.CancelledError() if is_cancelled else None)
