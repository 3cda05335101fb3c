"""Runs the user's code by Ray Serve's rules, on the user's event loop.

`async def` is awaited, `def` goes to Serve's thread pool unless it is switched off, generators of
both kinds become streams that pause when their consumer's credit is used up. Invariant: each
invocation given to `submit` or taken from the row of those that stand by ends in exactly one
`on_outcome`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from anyio import to_thread

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import message_from_exception
from serve_grpc._serve.replicas import ReplicaAccess, UserMethod
from serve_grpc._serve.requests import cancel_children, enter_request
from serve_grpc._serve.tracing import Scope
from serve_grpc.allow_list import AllowList, check_allowed, takes_pickle
from serve_grpc.config import LOGGER_NAME
from serve_grpc.deadlines import set_current_deadline
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    SerializationError,
    ServeGrpcError,
)
from serve_grpc.payload import ON_LOOP_BYTES, Payload, with_refs
from serve_grpc.protocol.status import message_from_error
from serve_grpc.replica.gates import LoopGate, ThreadGate
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome
from serve_grpc.replica.standby import SlotRelay, StandBy
from serve_grpc.serialization import Serializer, get_serializer

__all__ = ["Executor", "Outputs"]

logger = logging.getLogger(LOGGER_NAME)

STARTS_PER_TURN = 64
ITEMS_PER_TURN = 16
"""Of one stream whose generator never waits; then other streams, and the writer, have a turn."""


class Outputs(Protocol):
    """What comes out. Called on the user's loop or one of its threads."""

    def on_item(self, invocation: Invocation, payload: Payload) -> None:
        """One item of a stream."""

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        """The end."""

    def on_spare_slots(self, count: int) -> None:
        """So many slots were passed on, and nobody stands by any more."""


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
        """Raise CancelledError in the user's code, and cancel the calls it made."""
        if invocation.cancel_reason is not None or invocation.is_over:
            return
        invocation.cancel_reason = reason
        # A task that is cancelled before its first step never runs at all; such an invocation
        # looks at the reason when its turn comes, and still ends in an outcome.
        if invocation.is_running and invocation.task is not None:
            invocation.task.cancel()
            cancel_children(invocation.internal_request_id)

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
        if invocation.cancel_reason is not None:
            self._end(invocation, _cancelled(0.0))
            return
        invocation.is_running = True
        expiry: asyncio.TimerHandle | None = None
        if invocation.deadline_s is not None:
            expiry = asyncio.get_running_loop().call_later(
                max(0.0, invocation.deadline_s - time.monotonic()),
                self.cancel,
                invocation,
                CancelReason.DEADLINE,
            )
        scope = invocation.scope
        started = time.perf_counter()
        try:
            self._enter_context(invocation, scope)
            payload = await self._execute(invocation)
            outcome = Outcome(payload, latency_ms=(time.perf_counter() - started) * 1000)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt of a handler fail its call, not the replica.
            outcome = self._failed(invocation, error, (time.perf_counter() - started) * 1000)
            if scope is not None:
                scope.fail(error)
        if expiry is not None:
            expiry.cancel()
        self._end(invocation, outcome)
        if scope is not None:
            scope.leave()

    async def _run_relayed(self, invocation: Invocation) -> None:
        invocation.task = asyncio.current_task()
        await self._run(invocation)

    def _end(self, invocation: Invocation, outcome: Outcome) -> None:
        invocation.is_over = True
        # More run than there are slots when `max_ongoing_requests` was lowered.
        if self._standby and self._replica.ongoing() <= self._replica.max_ongoing_requests:
            outcome.passes_slot_on = True
            self._relay.add()
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
            args, kwargs = await to_thread.run_sync(loads, invocation.payload)
        invocation.payload = b""  # the arguments live on as objects
        method = self._replica.method(invocation.method)
        invocation.has_started = True
        if invocation.is_stream:
            await self._stream(invocation, method, args, kwargs, serializer)
            return b""
        if method.is_coroutine:
            result = await method.function(*args, **kwargs)
        else:
            result = await self._replica.call_by_serves_rules(method, args, kwargs)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(
                f"Method '{method.name}' returned a generator. You must use "
                "`handle.options(stream=True)` to call generators on a deployment."
            )
        return self._dump(serializer, result)

    def _dump(self, serializer: Serializer, value: Any) -> Payload:
        payload = serializer.dump_response(value)
        if len(payload) > self._max_message_bytes:
            raise MessageTooLargeError(len(payload), self._max_message_bytes, "response")
        return payload

    def _failed(self, invocation: Invocation, error: BaseException, latency_ms: float) -> Outcome:
        if isinstance(error, asyncio.CancelledError) and invocation.cancel_reason is not None:
            if invocation.cancel_reason is CancelReason.CALLER:
                return _cancelled(latency_ms)
            error = DeadlineExceededError("the deadline passed while the call ran")
        refs: list[Any] = []
        if isinstance(error, ServeGrpcError) and error.request_id == "":
            # One of ours about this very call; one that the user's code got from a call of its
            # own carries that call's request id and is an exception like any other.
            error.may_have_executed = invocation.has_started
            message = message_from_error(error)
        else:
            function_name = f"{self._function_prefix}.{invocation.method}"
            message = message_from_exception(
                error, function_name, may_pickle=self._takes_pickle, refs=refs
            )
        is_cancelled = message.code == Error.CANCELLED
        if not is_cancelled:
            logger.error("Request failed.", exc_info=(type(error), error, error.__traceback__))
        return Outcome(
            payload=with_refs(b"", refs),
            error=message,
            exception_type=type(error).__name__,
            status="CANCELLED" if is_cancelled else "ERROR",
            latency_ms=latency_ms,
        )

    # ------------------------------------------------------------ streams

    async def _stream(
        self,
        invocation: Invocation,
        method: UserMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        serializer: Serializer,
    ) -> None:
        if method.in_thread:
            await self._stream_in_thread(invocation, method, args, kwargs, serializer)
            return
        result = method.function(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = await result
        items = _as_async_iterator(result, method)
        gate = invocation.gate = LoopGate(*invocation.credit, is_held=invocation.is_held)
        try:
            sent = 0
            async for item in items:
                payload = self._dump(serializer, item)
                await gate.enter(len(payload))
                self._outputs.on_item(invocation, payload)
                sent += 1
                if sent == 1 or sent % ITEMS_PER_TURN == 0:
                    await asyncio.sleep(0)  # the first item leaves before the others are made
        except asyncio.CancelledError:
            await _throw_cancelled(result)
            raise
        finally:
            if inspect.isasyncgen(result):
                await result.aclose()

    async def _stream_in_thread(
        self,
        invocation: Invocation,
        method: UserMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        serializer: Serializer,
    ) -> None:
        # The whole generator runs in one thread, as Serve does it; the thread sleeps while there
        # is no credit, and stops at its next item once the call is cancelled.
        gate = invocation.gate = ThreadGate(*invocation.credit, is_held=invocation.is_held)

        def produce() -> None:
            result = method.function(*args, **kwargs)
            if not inspect.isgenerator(result):
                raise _not_a_generator(method)
            try:
                for item in result:
                    payload = self._dump(serializer, item)
                    if not gate.enter(len(payload)):
                        return
                    self._outputs.on_item(invocation, payload)
            finally:
                result.close()

        try:
            await to_thread.run_sync(produce)
        finally:
            gate.close()


def _cancelled(latency_ms: float) -> Outcome:
    return Outcome(
        error=Error(code=Error.CANCELLED, message="cancelled by the caller"),
        exception_type="CancelledError",
        status="CANCELLED",
        latency_ms=latency_ms,
    )


def _serializer(name: str, direction: str) -> Serializer:
    try:
        return get_serializer(name)
    except ValueError as error:
        raise SerializationError(str(error), serializer=name, direction=direction) from None


def _not_a_generator(method: UserMethod) -> TypeError:
    return TypeError(
        f"Called method '{method.name}' with `handle.options(stream=True)` but it did not return "
        "a generator."
    )


def _as_async_iterator(result: Any, method: UserMethod) -> AsyncIterator[Any]:
    if inspect.isasyncgen(result):
        return result
    if inspect.isgenerator(result):
        return _step(result)
    raise _not_a_generator(method)


async def _step(generator: Iterator[Any]) -> AsyncIterator[Any]:
    for item in generator:
        yield item


async def _throw_cancelled(result: Any) -> None:
    """Raise CancelledError where an async generator paused while its item waited for credit.

    A generator that was cancelled inside its own code is already over.
    """
    if inspect.isasyncgen(result):
        try:
            await result.athrow(asyncio.CancelledError())
        except (asyncio.CancelledError, StopAsyncIteration):
            return
