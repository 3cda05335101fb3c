"""Our own choice of a replica: the one that is least busy, or a turn in the line.

Calls wait in one line, first come, first served; they move when one of our calls ends, a replica
that turned us away calls back, or the replica set changes. Only where none of that can happen a
timer looks again. On the router's loop.

Invariants: while calls wait, no replica has room, so news of one replica concern that one alone.
Except while calls came back, or wait for a replica they prefer to open its first session: then
others may have room as well, and all are looked at.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.routers import RouterAdapter
from serve_grpc.caller.bound import BoundCalls
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.events import note
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.outcomes import GivenUp, Lost, NotRepeated, Outcome, Raised
from serve_grpc.caller.replicas import Replicas
from serve_grpc.caller.serve_calls import ServeCalls
from serve_grpc.caller.tally import Tally
from serve_grpc.caller.waking import BackoffTimer, ServeWatch
from serve_grpc.debugging import is_debugged
from serve_grpc.foreign import run_foreign
from serve_grpc.mailbox import mailbox_of
from serve_grpc.routing.line import Line
from serve_grpc.routing.peer import PeerState
from serve_grpc.routing.retry import RetryBudget

__all__ = ["WaitingLine"]

FAILURES = (Error.USER_EXCEPTION, Error.INTERNAL)
"""Errors that tell against the replica that gives them."""


class WaitingLine:
    """The line of one router: the chooser of its calls, and the stage of those that wait.

    Args:
        adapter: To Serve's router.
        tally: Where it is counted who waits.

    Attributes:
        feed: What is known of the deployment; set by the router.
        replicas: Where calls go; set by the router before it submits one.
        watch: To be begun when a call waits for news of Serve; likewise.
        take_early: Takes those that wait for the configuration; likewise.
        bound: Calls that may go to one replica only.
        serve_calls: Those that are left to Serve's own router.
        sequence: Numbers calls in the order in which they were let in.
        backoff: After which replicas are asked again that turned calls away.
        closed_reason: Why no call is taken any more; None while they are.
    """

    may_have_started = False
    on_end = None  # nothing is kept here of a call that neither waits nor is on a replica
    replicas: Replicas
    watch: ServeWatch
    take_early: Callable[[], list[Delivery]]

    def __init__(self, adapter: RouterAdapter, tally: Tally) -> None:
        self._adapter = adapter
        self._tally = tally
        self._waiting: Line[Delivery] = Line()
        self.sequence = itertools.count()
        self._budget = RetryBudget(time.monotonic())
        self.backoff = BackoffTimer(adapter, self._after_pause)
        self._has_returned = False  # calls wait again that were on a replica
        self.serve_calls = ServeCalls(self._budget)
        self.bound = BoundCalls(self, adapter, tally)
        self.feed = Feed()
        self.closed_reason: str | None = None
        # Serve's accounting of requests on replicas; bound here, for each call asks for both.
        self.on_sent = adapter.on_sent
        self.on_left = adapter.on_finished
        self.on_new_call = self._budget.on_call  # each earns a part of a repeat

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<WaitingLine of {len(self)}>"

    @property
    def has_waiting(self) -> bool:
        """Whether a call waits here, or at Serve's own router."""
        is_anyone_here = self._waiting.head() is not None or self.bound.has_waiting
        return is_anyone_here or bool(self.serve_calls)

    def waiting(self) -> list[Delivery]:
        """Those that wait, in order."""
        return [delivery for delivery in self._waiting if delivery.stage is self]

    # ------------------------------------------------------------ new calls

    def count(self, delivery: Delivery, *, is_refused: bool = False) -> None:
        """Count a call as Serve does; those that go over Serve's transport are counted there."""
        if delivery.ended is None:
            return  # a choice of a replica is no call
        envelope = delivery.call.fields.envelope
        self._adapter.on_call(envelope.route, envelope.app_name)
        if is_refused:
            self._adapter.on_refused(envelope.route)

    def pick_for_new(self, delivery: Delivery) -> Connection | None:
        """A connection that takes the call now, while nobody waits before it."""
        if self._waiting.head() is not None:
            return None
        return self.replicas.pick(delivery.call.fields.multiplexed_model_id)

    def refusal(self, delivery: Delivery, *, is_full: bool) -> Outcome | None:
        """Why a new call may not even wait."""
        error = self._adapter.refusal(
            is_full=is_full, room_to_come=lambda: self.replicas.room_to_come
        )
        return None if error is None else Raised(error)

    def route(self, delivery: Delivery, connection: Connection | None) -> None:
        """Send a call that was let in, or let it wait if there is no connection for it."""
        # Once for all its tries: a call that comes back is put in the line by this number.
        delivery.sequence = next(self.sequence)
        if self.feed.is_ready and delivery.ended is not None:  # as `count`, for one call less
            envelope = delivery.call.fields.envelope
            self._adapter.on_call(envelope.route, envelope.app_name)
        if connection is not None:
            delivery.send(connection, is_new=True)
            return
        # In the line first: whatever fails those that wait finds this one, too.
        self._enter(delivery)
        if self.is_over:
            self.fail_waiting()  # its arguments came too late
        elif self.replicas:
            self.ensure_progress()
        else:
            run_foreign("ask for a replica", self._adapter.ask_for_first_replica)

    def leave_to_serve(self, delivery: Delivery) -> None:
        """Leave a call to Serve's own router."""
        if self.closed_reason is not None:
            delivery.end(GivenUp(self.closed_reason))
            return
        self.serve_calls.start(delivery, is_fallback=self.feed.fallback_reason is not None)
        self.watch.begin()

    def watch_serve(self) -> None:
        """See whether Serve is still there while calls wait for it."""
        self.watch.begin()

    # ------------------------------------------------------------ the line

    def _enter(self, delivery: Delivery) -> None:
        """Let a call wait, where it stood before if it comes back."""
        delivery.stage = self
        delivery.call.replica_id = None
        self._waiting.add(delivery)
        if is_debugged():
            note("request %s: waits for a replica", delivery.request_id)
        self._tally.on_queued(delivery)
        # Last: it may find Serve gone at once, and end all that wait, this one among them.
        self.watch.begin()

    def _leave(self) -> Delivery | None:
        """Take the first call that still waits."""
        delivery = self._waiting.pop()
        if delivery is not None:
            self.withdraw(delivery)
        return delivery

    def withdraw(self, delivery: Delivery) -> None:
        """The call waits no longer. What stays of it in the line is passed over once it is done."""
        delivery.stage = None
        # Once for each `_enter`, whichever way the call leaves: Serve refuses calls by this number,
        # and scales the deployment by it.
        self._tally.on_unqueued()

    def grant(self, items: int, bytes_: int) -> None:
        """Nothing came of a call that waits, unless on a replica that is lost."""

    def describe(self) -> str:
        """Where the call is."""
        return "queued"

    def trouble(self) -> str:
        """Why none of the replicas can be reached, if that is so."""
        return self.replicas.trouble

    def pump(self) -> None:
        """Send what waits to whoever has room."""
        self._has_returned = False
        if self.is_over:
            self.fail_waiting()  # no replica will come, and nothing else would wake them
        # News since they came: a request router of the user's (decision 0012), or no endpoint.
        while self.feed.is_serve_routed and (delivery := self._leave()) is not None:
            self.leave_to_serve(delivery)
        while (delivery := self._waiting.head()) is not None:
            connection = self.replicas.pick(delivery.call.fields.multiplexed_model_id)
            # No look past the first: one behind it that wants another model must not overtake.
            if connection is None:
                break
            if self.bound and self.bound.send_before(delivery, connection):
                continue
            # Off before it is sent. `send` may end it, the line drops what has ended, and a
            # `_leave` after it would take the next call and lose it.
            self._leave()
            self._send(delivery, connection)
        if self.bound:
            self.bound.pump()
        self.ensure_progress()

    def _send(self, delivery: Delivery, connection: Connection) -> None:
        if delivery.send(connection):
            self._tally.on_waited(delivery)

    @property
    def is_over(self) -> bool:
        """Whether no replica will come."""
        return self.closed_reason is not None or self._adapter.is_unavailable

    def fail_waiting(self) -> None:
        """End those that wait, for no replica will come; those before the entrance first."""
        waiting = self.take_early()
        while (delivery := self._leave()) is not None:
            waiting.append(delivery)
        for delivery in waiting:
            delivery.end(self.why_over(delivery))
        self.bound.fail_waiting()

    def why_over(self, delivery: Delivery) -> Outcome:
        """How a call ends for which no replica will come."""
        if self.closed_reason is not None:
            return GivenUp(self.closed_reason)
        unavailable = self._adapter.unavailable()
        # Serve's error promises that the call did not start.
        return NotRepeated(unavailable) if delivery.may_have_executed else Raised(unavailable)

    def on_change(self, connection: Connection) -> None:
        """A replica has room again, or turned calls away, or was lost."""
        if self._waiting:
            self._send_waiting(connection)
        if self.bound:  # what room is left, and what befell the replica
            self.bound.on_change(connection)

    def _send_waiting(self, connection: Connection) -> None:
        others_may_have_room = self._has_returned or self.replicas.is_opening
        # LOST is also one whose session takes long to open: others are opened in its place.
        is_lost = connection.is_down or connection.peer.state is PeerState.LOST
        if others_may_have_room or self.feed.is_serve_routed or is_lost:
            self.pump()
            return
        # Room is looked for first: a call that has left the line has to be sent.
        while connection.takes_calls and (delivery := self._waiting.head()) is not None:
            if not (self.bound and self.bound.send_before(delivery, connection)):
                self._leave()
                self._send(delivery, connection)
        if connection.peer.blocked:
            self.ensure_progress()

    def ensure_progress(self) -> None:
        """See that somebody takes the calls that wait, as far as that is up to this side.

        Replicas that no session leads to yet take some. If only one that turned a call away could,
        look again after a pause.
        """
        # Sent in a turn of their own: this may be one in which a call is sent.
        if self._waiting and self.replicas.widen(len(self._waiting)):
            self._look_again()
        if (self._waiting or self.bound) and self.replicas.has_blocked:
            self.backoff.begin()

    def _after_pause(self) -> None:
        self.replicas.unblock()
        self.pump()

    # ------------------------------------------------------------ what becomes of sent calls

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        """The replica had the last word on a call."""
        # Slots do come free, so the next pause is the shortest again.
        self.backoff.times = 0
        if error is None:
            if self.replicas.outliers or connection.peer.penalised:
                self.replicas.on_success(connection, delivery.call)
        elif error.code in FAILURES:
            self.replicas.on_failure(connection, delivery.call)

    def on_rejected(self, delivery: Delivery, connection: Connection) -> None:
        """The replica was full: the call goes back to where it stood in the line."""
        self._tally.rejections += 1
        self._return(delivery)

    def on_ready(self, delivery: Delivery) -> None:
        """The call goes back to where it stood in the line."""
        self._return(delivery)

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        """Repeat a call whose session was lost, if that is safe and the budget has it."""
        # One that did not start costs no budget, as no work is done twice. The budget is asked
        # last, for asking spends.
        may_repeat = not lost.may_have_started or (
            delivery.may_run_twice and self._budget.try_spend(time.monotonic())
        )
        if not may_repeat or self.closed_reason is not None:
            return False
        self._tally.retries += 1
        # Before the call waits: what fails it there has to know.
        delivery.may_have_executed |= lost.may_have_started
        self._return(delivery)
        return True

    def _return(self, delivery: Delivery) -> None:
        """Let a call that has left the line wait again."""
        self._enter(delivery)
        self._look_again()

    def _look_again(self) -> None:
        """Look at all replicas, in the next turn of the loop."""
        if not self._has_returned:
            self._has_returned = True
            # The news of a replica that has left the set reach no one, so they cannot wake it.
            mailbox_of(self._adapter.loop).post(self._after_return)

    def _after_return(self) -> None:
        if self._has_returned:
            self.pump()

    def close(self, reason: str) -> None:
        """Take no call any more; who waits is told by `fail_waiting`."""
        self.closed_reason = reason
        self.backoff.close()
