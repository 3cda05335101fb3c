"""When invocations begin, are told to stop, and end; on the user's event loop.

What their code is and how it is called is in `user_code`. Invariant: each invocation given to
`submit`, or taken from the standby queue, ends in exactly one `on_outcome`, and its slot is passed
on or given back exactly once (`_end`), when its code is out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc._serve.requests import cancel_children
from serve_grpc._serve.tracing import Scope
from serve_grpc.allow_list import AllowList, takes_pickle
from serve_grpc.foreign import log_failure
from serve_grpc.payload import Payload
from serve_grpc.replica.debug_lines import follow
from serve_grpc.replica.failures import OutputError, given_up, outcome_of_error
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome, Stage
from serve_grpc.replica.standby import SlotRelay, StandbyQueue
from serve_grpc.replica.user_code import UserCode
from serve_grpc.streams.credit_gates import ThreadGate
from serve_grpc.streams.inbox import Stop

__all__ = ["STARTS_PER_TURN", "STARTS_PER_TURN_LOCAL", "Executor", "Outputs"]

STARTS_PER_TURN, STARTS_PER_TURN_LOCAL = 64, 16
"""Of one burst of requests; then replies of the first ones leave while the next ones run. Measured:
all at once are fewer calls a second; 16 a turn cost more messages, which cost little over the local
lane (docs/decisions/0007)."""

# Looking one up on the class of an enum is a call on CPython 3.10.
_WAITING, _BEGUN, _OVER = Stage.WAITING, Stage.BEGUN, Stage.OVER


class Outputs(Protocol):
    """What comes out. Called on the user's loop or one of its threads."""

    def on_item(self, invocation: Invocation, payload: Payload) -> None:
        """Send one item of a stream."""

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        """Tell how an invocation ended; once for each."""

    def on_spare_slots(self, count: int) -> None:
        """Give back so many slots that nobody stands by for."""


class Executor:
    """Runs invocations. All methods are called on the user's loop.

    Args:
        replica: Serve's rules and the user's methods.
        outputs: Where items and outcomes go.
        max_message_bytes: Largest serialized result or item.
        serializers: The only ones that requests may use; None for all.
        standby: Requests that get the slots of those that end.
    """

    def __init__(
        self,
        replica: ReplicaAdapter,
        outputs: Outputs,
        max_message_bytes: int,
        serializers: AllowList = None,
        standby: StandbyQueue[Invocation] | None = None,
    ) -> None:
        self._replica = replica
        self._outputs = outputs
        self._code = UserCode(replica, max_message_bytes, serializers, outputs.on_item)
        self._takes_pickle = takes_pickle(serializers)
        self._to_start: deque[Invocation | None] = deque()
        self._starts_per_turn = STARTS_PER_TURN
        self._standby: StandbyQueue[Invocation] = StandbyQueue() if standby is None else standby
        self._relay = SlotRelay(
            self._standby, replica.user_loop, self._run_relayed, outputs.on_spare_slots
        )
        self._function_prefix = f"ServeReplica:{replica.app_name}:{replica.deployment_name}"

    def submit(
        self,
        invocations: list[Invocation],
        standing_by: int = 0,
        starts_per_turn: int = STARTS_PER_TURN,
    ) -> None:
        """Start each of them, in order, in a task of its own.

        Args:
            invocations: Requests that hold a slot.
            standing_by: How many more were added to the standby queue.
            starts_per_turn: Of these and of all that wait to be started.
        """
        is_starting = bool(self._to_start)
        self._starts_per_turn = starts_per_turn
        self._to_start.extend(invocations)
        if standing_by:
            self._to_start.extend([None] * standing_by)
            self._relay.expect(standing_by)
        if not is_starting:
            self._start_some()

    def add_slot(self) -> None:
        """A slot for a request that stands by."""
        self._relay.add()

    def _start_some(self) -> None:
        # A few in each turn of the loop, so that caller and replica work at the same time instead
        # of in turns. None stands for one that was told to stand by, in its place in line.
        loop = self._replica.user_loop
        for _ in range(min(self._starts_per_turn, len(self._to_start))):
            invocation = self._to_start.popleft()
            if invocation is None:
                self._relay.start_one()
            else:
                invocation.task = loop.create_task(self._run(invocation))
        if self._to_start:
            loop.call_soon(self._start_some)

    def cancel(self, invocation: Invocation, reason: CancelReason) -> None:
        """Raise CancelledError in the user's code, and cancel the calls it made.

        Code in a thread cannot be interrupted: the caller is told that its call is over, and the
        slot is held until the thread is out.
        """
        if invocation.cancel_reason is not None or invocation.stage is _OVER:
            return
        invocation.cancel_reason = reason
        if invocation.is_followed:
            follow(
                invocation.request_id, "cancelled (%s), %s", reason.value, invocation.stage.value
            )
        if invocation.inputs is not None:
            invocation.inputs.cut_off()
        # A task that is cancelled before its first step never runs at all; such an invocation
        # looks at the reason when its turn comes, and still ends in an outcome.
        if invocation.stage is _WAITING or invocation.task is None:
            return
        thread_call = invocation.thread_call
        if thread_call is None or thread_call.call_off():
            invocation.task.cancel()
        else:
            self._leave_behind(invocation, reason)
        # As Serve does for a request by reference that is cancelled (`_on_request_cancelled` of
        # `ray/serve/_private/replica.py`); one that ends leaves its calls alone.
        cancel_children(invocation.internal_request_id)

    def _leave_behind(self, invocation: Invocation, reason: CancelReason) -> None:
        if isinstance(invocation.gate, ThreadGate):
            invocation.gate.close()
        if invocation.scope is not None:
            invocation.scope.fail(asyncio.CancelledError())
        outcome = given_up(invocation, reason)
        outcome.holds_slot = True
        self._tell(invocation, outcome)

    def grant(self, invocation: Invocation, items: int, bytes_: int) -> None:
        """Let a stream go on."""
        if invocation.gate is not None:
            invocation.gate.grant(items, bytes_)

    def hold(self, invocations: list[Invocation], is_held: bool) -> None:
        """Let streams wait whatever their credit, or go on."""
        for invocation in invocations:
            invocation.is_held = is_held
            if invocation.gate is not None:
                invocation.gate.hold(is_held)

    # ------------------------------------------------------------ one invocation

    async def _run(self, invocation: Invocation) -> None:
        # Whatever is raised here, the slot is given back and the caller is told, once.
        invocation.started_s = time.perf_counter()
        scope = invocation.scope
        expiry: asyncio.TimerHandle | None = None
        try:
            if invocation.cancel_reason is not None:
                raise asyncio.CancelledError
            invocation.stage = _BEGUN
            if invocation.is_followed:
                follow(invocation.request_id, "started, method %s", invocation.method)
            if invocation.deadline_s is not None:
                expiry = asyncio.get_running_loop().call_later(
                    max(0.0, invocation.deadline_s - time.monotonic()),
                    self.cancel,
                    invocation,
                    CancelReason.DEADLINE,
                )
            self._code.enter_context(invocation, scope)
            outcome = Outcome(await self._code.call(invocation))
        except BaseException as error:
            # SystemExit and KeyboardInterrupt of a handler fail its call, not the replica.
            outcome = self._failed(invocation, error, scope)
        if expiry is not None:
            expiry.cancel()
        if invocation.inputs is not None:
            invocation.inputs.cut_off(Stop.OVER)
        # After the outcome: an exporter of the user's, at the span's end, delays no reply.
        self._end(invocation, outcome)
        if scope is not None:
            scope.leave()

    async def _run_relayed(self, invocation: Invocation) -> None:
        invocation.task = asyncio.current_task()
        await self._run(invocation)

    def _failed(self, invocation: Invocation, error: BaseException, scope: Scope | None) -> Outcome:
        if invocation.stage is _OVER:  # it was left behind; what becomes of it concerns nobody
            return Outcome()
        if scope is not None:
            scope.fail(error.error if type(error) is OutputError else error)
        return outcome_of_error(
            error,
            invocation,
            function_prefix=self._function_prefix,
            may_pickle=self._takes_pickle,
        )

    def _end(self, invocation: Invocation, outcome: Outcome) -> None:
        """The user's code is out: its slot is for another request, here or anywhere.

        The one place that decides about a slot. Where it is given back is `Admission.give_back`.
        """
        # More run than there are slots when `max_ongoing_requests` was lowered; then slots go back
        # until the number is met.
        passes_slot_on = bool(
            self._standby.queue and self._replica.ongoing() <= self._replica.max_ongoing_requests
        )
        if passes_slot_on:
            self._relay.add()
        if invocation.stage is not _OVER:
            outcome.passes_slot_on = passes_slot_on
            self._tell(invocation, outcome)
        elif not passes_slot_on:
            # It was left behind, so its outcome was told long ago and the slot goes back by itself.
            self._outputs.on_spare_slots(1)

    def _tell(self, invocation: Invocation, outcome: Outcome) -> None:
        invocation.stage = _OVER
        outcome.latency_ms = (time.perf_counter() - invocation.started_s) * 1000
        # As `run_foreign`, without its call: what is told of the end is not all ours.
        try:
            self._outputs.on_outcome(invocation, outcome)
        except BaseException:
            log_failure("record a request's end")
