"""Runs the user's code by Ray Serve's rules, on the user's event loop.

`async def` is awaited, `def` goes to Serve's thread pool unless it is switched off, generators of
both kinds become streams (`streams.py`). Invariant: each invocation given to `submit` or taken from
the row of those that stand by ends in exactly one `on_outcome`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from serve_grpc._serve.replicas import ReplicaAccess, UserMethod
from serve_grpc._serve.requests import cancel_children, enter_request
from serve_grpc._serve.tracing import Scope
from serve_grpc.allow_list import AllowList, check_allowed, takes_pickle
from serve_grpc.deadlines import set_current_deadline
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    SerializationError,
    ServeGrpcError,
)
from serve_grpc.payload import ON_LOOP_BYTES, Payload
from serve_grpc.replica.failures import OutputError, given_up, outcome_of_error
from serve_grpc.replica.gates import LoopGate, ThreadGate
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome
from serve_grpc.replica.standby import SlotRelay, StandBy
from serve_grpc.replica.streams import stream_in_this_thread, stream_on_loop
from serve_grpc.replica.thread_call import ThreadCall
from serve_grpc.serialization import Serializer, get_serializer
from serve_grpc.threads import in_thread

__all__ = ["Executor", "Outputs"]

STARTS_PER_TURN = 64


class Outputs(Protocol):
    """What comes out. Called on the user's loop or one of its threads."""

    def on_item(self, invocation: Invocation, payload: Payload) -> None:
        """One item of a stream."""

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        """The end."""

    def on_spare_slots(self, count: int) -> None:
        """So many slots are free that were held or passed on, and nobody stands by."""


class Executor:
    """Runs invocations. All methods are called on the user's loop.

    Args:
        replica: Serve's rules and the user's methods.
        outputs: Where items and outcomes go.
        max_message_bytes: Largest serialized result or item.
        serializers: The only ones that requests may use; None for all.
        standby: The row of requests that get the slots of those that end.
    """

    def __init__(
        self,
        replica: ReplicaAccess,
        outputs: Outputs,
        max_message_bytes: int,
        serializers: AllowList = None,
        standby: StandBy[Invocation] | None = None,
    ) -> None:
        self._replica = replica
        self._outputs = outputs
        self._max_message_bytes = max_message_bytes
        self._serializers = serializers
        self._takes_pickle = takes_pickle(serializers)
        self._to_start: deque[Invocation | None] = deque()
        self._standby: StandBy[Invocation] = StandBy() if standby is None else standby
        self._relay = SlotRelay(
            self._standby, replica.user_loop, self._run_relayed, outputs.on_spare_slots
        )
        self._function_prefix = f"ServeReplica:{replica.app_name}:{replica.deployment_name}"

    def submit(self, invocations: list[Invocation], standing_by: int = 0) -> None:
        """Start each of them, in order, in a task of its own.

        Args:
            invocations: Requests that hold a slot.
            standing_by: How many more were added to the row of those that stand by.
        """
        is_starting = bool(self._to_start)
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
        # A few in each turn of the loop: the replies of the first leave while the next ones run,
        # so that caller and replica work at the same time instead of in turns.
        loop = self._replica.user_loop
        for _ in range(min(STARTS_PER_TURN, len(self._to_start))):
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
        if invocation.cancel_reason is not None or invocation.is_over:
            return
        invocation.cancel_reason = reason
        # A task that is cancelled before its first step never runs at all; such an invocation
        # looks at the reason when its turn comes, and still ends in an outcome.
        if not invocation.is_running or invocation.task is None:
            return
        thread_call = invocation.thread_call
        if thread_call is None or thread_call.call_off():
            invocation.task.cancel()
        else:
            self._leave_behind(invocation, reason)
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
            invocation.is_running = True
            if invocation.deadline_s is not None:
                expiry = asyncio.get_running_loop().call_later(
                    max(0.0, invocation.deadline_s - time.monotonic()),
                    self.cancel,
                    invocation,
                    CancelReason.DEADLINE,
                )
            self._enter_context(invocation, scope)
            outcome = Outcome(await self._execute(invocation))
        except BaseException as error:
            # SystemExit and KeyboardInterrupt of a handler fail its call, not the replica.
            outcome = self._failed(invocation, error, scope)
        if expiry is not None:
            expiry.cancel()
        try:
            self._end(invocation, outcome)
        finally:
            if scope is not None:
                scope.leave()

    async def _run_relayed(self, invocation: Invocation) -> None:
        invocation.task = asyncio.current_task()
        await self._run(invocation)

    def _failed(self, invocation: Invocation, error: BaseException, scope: Scope | None) -> Outcome:
        if invocation.is_over:  # it was left behind; what becomes of it concerns nobody
            return Outcome()
        if scope is not None:
            scope.fail(error)
        return outcome_of_error(
            error,
            invocation,
            function_prefix=self._function_prefix,
            may_pickle=self._takes_pickle,
        )

    def _end(self, invocation: Invocation, outcome: Outcome) -> None:
        """The user's code is out: its slot is for another request."""
        # More run than there are slots when `max_ongoing_requests` was lowered.
        passes_slot_on = bool(
            self._standby and self._replica.ongoing() <= self._replica.max_ongoing_requests
        )
        if passes_slot_on:
            self._relay.add()
        if not invocation.is_over:
            outcome.passes_slot_on = passes_slot_on
            self._tell(invocation, outcome)
        elif not passes_slot_on:
            self._outputs.on_spare_slots(1)

    def _tell(self, invocation: Invocation, outcome: Outcome) -> None:
        invocation.is_over = True
        outcome.latency_ms = (time.perf_counter() - invocation.started_s) * 1000
        self._outputs.on_outcome(invocation, outcome)

    def _enter_context(self, invocation: Invocation, scope: Scope | None) -> None:
        set_current_deadline(invocation.deadline_s)
        fields = {
            "route": invocation.route,
            "request_id": invocation.request_id,
            "_internal_request_id": invocation.internal_request_id,
            "app_name": self._replica.app_name,
            "multiplexed_model_id": invocation.multiplexed_model_id,
            "session_id": invocation.session_id,
            "grpc_context": None,
            "is_http_request": False,
            "cancel_on_parent_request_cancel": True,
            "_client": invocation.client,
            "_ray_trace_ctx": None,
        }
        if scope is not None:
            scope.enter(
                fields,
                replica_id=self._replica.replica_id,
                deployment_name=self._replica.deployment_name,
                call_method=invocation.method,
                is_streaming=invocation.is_stream,
            )
        enter_request(fields)

    async def _execute(self, invocation: Invocation) -> Payload:
        if invocation.deadline_s is not None and invocation.deadline_s <= time.monotonic():
            raise DeadlineExceededError("the deadline passed before the call started")
        request, response = invocation.request_serializer, invocation.response_serializer
        if self._serializers is not None:
            check_allowed(
                self._serializers,
                request,
                response,
                f"deployment {self._replica.deployment_name!r}",
            )
        loads = _serializer(request, "request").load_request
        serializer = _serializer(response, "response")
        if len(invocation.payload) <= ON_LOOP_BYTES:
            args, kwargs = loads(invocation.payload)
        else:  # copying it would hold up every other handler
            args, kwargs = await in_thread(loads, invocation.payload)
        invocation.payload = b""  # the arguments live on as objects
        method = self._replica.method(invocation.method)
        invocation.has_started = True
        if invocation.is_stream:
            await self._stream(invocation, method, args, kwargs, serializer)
            return b""
        if method.is_coroutine:
            result = await method.function(*args, **kwargs)
        elif method.in_thread:
            result = await self._in_thread(invocation, method.function, *args, **kwargs)
        else:
            result = await self._replica.call_by_serves_rules(method, args, kwargs)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(
                f"Method '{method.name}' returned a generator. You must use "
                "`handle.options(stream=True)` to call generators on a deployment."
            )
        return self._dump(serializer, result)

    async def _in_thread(
        self, invocation: Invocation, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        thread_call = invocation.thread_call = ThreadCall(function, *args, **kwargs)
        return await thread_call.run()

    def _dump(self, serializer: Serializer, value: Any) -> Payload:
        try:
            payload = serializer.dump_response(value)
        except ServeGrpcError as error:
            raise OutputError(error) from error
        if len(payload) > self._max_message_bytes:
            too_large = MessageTooLargeError(len(payload), self._max_message_bytes, "response")
            raise OutputError(too_large)
        return payload

    async def _stream(
        self,
        invocation: Invocation,
        method: UserMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        serializer: Serializer,
    ) -> None:
        dump = functools.partial(self._dump, serializer)
        send = functools.partial(self._outputs.on_item, invocation)
        if method.in_thread:
            gate = ThreadGate(*invocation.credit, is_held=invocation.is_held)
            invocation.gate = gate
            await self._in_thread(
                invocation, stream_in_this_thread, method, args, kwargs, gate, dump, send
            )
        else:
            loop_gate = LoopGate(*invocation.credit, is_held=invocation.is_held)
            invocation.gate = loop_gate
            await stream_on_loop(method, args, kwargs, loop_gate, dump, send)


def _serializer(name: str, direction: str) -> Serializer:
    try:
        return get_serializer(name)
    except ValueError as error:
        raise SerializationError(str(error), serializer=name, direction=direction) from None
