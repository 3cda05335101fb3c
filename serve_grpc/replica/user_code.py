"""The user's code, called by Ray Serve's rules. On the user's event loop.

`async def` is awaited, `def` goes to Serve's thread pool unless that is switched off, generators of
both kinds become streams (`streams.py`). Rules are those of `UserCallableWrapper` in
`ray/serve/_private/replica.py`, as of Ray 2.60: code must not be able to tell a call that came here
from one that came by reference.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

from serve_grpc._serve.replicas import ReplicaAdapter, UserMethod, refuse_inputs_of_batches
from serve_grpc._serve.requests import enter_request
from serve_grpc._serve.tracing import Scope
from serve_grpc.allow_list import AllowList, check_allowed
from serve_grpc.deadlines import set_current_deadline
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaError,
    SerializationError,
    ServeGrpcError,
)
from serve_grpc.payload import ON_LOOP_BYTES, Memory, Payload, Segments
from serve_grpc.pickling import copied_bytes
from serve_grpc.replica.failures import OutputError
from serve_grpc.replica.inputs import Inputs
from serve_grpc.replica.invocation import Invocation, Stage
from serve_grpc.replica.streams import stream_in_this_thread, stream_on_loop
from serve_grpc.replica.thread_call import ThreadCall
from serve_grpc.serialization import Serializer, get_serializer
from serve_grpc.storing import StoreError, fetch_request, put
from serve_grpc.streams.credit_gates import LoopGate, ThreadGate
from serve_grpc.threads import in_thread

__all__ = ["UserCode"]

# No generators; where Cython is loaded, which patches `inspect`, asking takes a microsecond.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict})

_CALLED = Stage.CALLED  # looking one up on the class of an enum is a call

SendItem = Callable[[Invocation, Payload], None]


class UserCode:
    """The methods of the user's class, as requests call them.

    Args:
        replica: Serve's rules and the methods.
        max_message_bytes: Largest serialized result or item.
        serializers: The only ones that requests may use; None for all.
        send_item: Where items of streams go; called on the user's loop or one of its threads.
    """

    def __init__(
        self,
        replica: ReplicaAdapter,
        max_message_bytes: int,
        serializers: AllowList,
        send_item: SendItem,
    ) -> None:
        self._replica = replica
        self._max_message_bytes = max_message_bytes
        self._serializers = serializers
        self._send_item = send_item

    def enter_context(self, invocation: Invocation, scope: Scope | None) -> None:
        """Let the code see its request: deadline, trace, and Serve's own request context.

        The context is of the task that runs this, so nobody has to leave it.
        """
        set_current_deadline(invocation.deadline_s)
        # Every field of `_RequestContext` in `ray/serve/context.py`, as of Ray 2.60. The replica's
        # `_wrap_request` sets them for requests by reference, from the request's metadata.
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
            # It fills in what the request carried, before the fields become Serve's context.
            scope.enter(
                fields,
                replica_id=self._replica.replica_id,
                deployment_name=self._replica.deployment_name,
                call_method=invocation.method,
                is_streaming=invocation.is_stream,
            )
        enter_request(fields)

    async def call(self, invocation: Invocation) -> Payload:
        """Run the code of a request to its end; returns the serialized result, b"" of a stream.

        Raises:
            BaseException: What the code raises, whatever that is.
            ServeGrpcError: The request cannot be run: its deadline passed while it waited, or its
                arguments cannot be read.
            OutputError: What the code returned, or an item of it, cannot be sent.
        """
        if invocation.deadline_s is not None and invocation.deadline_s <= time.monotonic():
            raise DeadlineExceededError("the deadline passed before the call started")
        request, response = invocation.request_serializer, invocation.response_serializer
        # Before anything of it is decoded. Callers check as well, but this is what protects the
        # replica (docs/decisions/0013).
        if self._serializers is not None:
            check_allowed(
                self._serializers,
                request,
                response,
                f"deployment {self._replica.deployment_name!r}",
            )
        serializer = _serializer(request, "request")
        loads = serializer.load_request
        if response != request:  # with most calls they are the same
            serializer = _serializer(response, "response")
        if type(payload := invocation.payload) is bytes and len(payload) <= ON_LOOP_BYTES:
            args, kwargs = loads(payload)
        else:
            args, kwargs = await _load(loads, payload)
        # The arguments live on as objects; their bytes would be held for as long as the code runs.
        payload = invocation.payload = b""
        method = self._replica.method(invocation.method)
        if invocation.inputs is not None:
            args, kwargs = _with_inputs(invocation.inputs, method, args, kwargs)
        # What failed until here had no effects; from here on nobody knows, and callers are told so.
        invocation.stage = _CALLED
        if invocation.is_stream:
            await self._stream(invocation, method, args, kwargs, serializer)
            return b""
        if method.is_coroutine:
            result = await method.function(*args, **kwargs)
        elif method.in_thread:
            result = await self._in_thread(invocation, method.function, *args, **kwargs)
        else:
            result = await self._replica.call_by_serves_rules(method, args, kwargs)
        if type(result) not in _PLAIN:
            _refuse_generator(method, result)
        above = invocation.replies.stores_above
        payload = self._dump(serializer, invocation.memory, result, above)
        return payload if above is None or len(payload) <= above else await _store(payload)

    async def _in_thread(
        self, invocation: Invocation, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        thread_call = invocation.thread_call = ThreadCall(function, *args, **kwargs)
        return await thread_call.run()

    def _dump(
        self,
        serializer: Serializer,
        memory: Memory | None,
        value: Any,
        stores_above: int | None = None,
    ) -> Payload:
        try:
            payload = serializer.dump_response(value, memory)
        except ServeGrpcError as error:
            # Not the error itself: the code may raise one of the same class, which is the user's.
            raise OutputError(error) from error
        if stores_above is None and len(payload) > self._max_message_bytes:
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
        dump = functools.partial(self._dump, serializer, invocation.memory)
        send = functools.partial(self._send_item, invocation)
        if method.in_thread:
            gate = ThreadGate(*invocation.credit, is_held=invocation.is_held)
            invocation.gate = gate
            try:
                await self._in_thread(
                    invocation, stream_in_this_thread, method, args, kwargs, gate, dump, send
                )
            finally:
                gate.close()  # a task that others cancel leaves no thread at the gate
        else:
            loop_gate = LoopGate(*invocation.credit, is_held=invocation.is_held)
            invocation.gate = loop_gate
            await stream_on_loop(method, args, kwargs, loop_gate, dump, send)


def _with_inputs(
    inputs: Inputs, method: UserMethod, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    refuse_inputs_of_batches(method)
    return inputs.placed(args, kwargs)


def _refuse_generator(method: UserMethod, result: Any) -> None:
    # In the words of Serve's own error (`_handle_user_method_result`): users may look for them.
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(
            f"Method '{method.name}' returned a generator. You must use "
            "`handle.options(stream=True)` to call generators on a deployment."
        )


async def _load(loads: Callable[[Payload], Any], payload: Payload) -> Any:
    if type(payload) is Segments and payload.stored is not None:
        size = payload.stored.size
        try:
            payload = await fetch_request(payload.stored)
        except StoreError as error:
            text = f"the request of {size} bytes could not be fetched from Ray's object store"
            raise ReplicaError(f"{text}: {error}") from error
    elif len(payload) <= ON_LOOP_BYTES or copied_bytes(payload) <= ON_LOOP_BYTES:
        return loads(payload)
    return await in_thread(loads, payload)  # copying it would hold up every other handler


async def _store(payload: Payload) -> Payload:
    try:
        return await put(payload)
    except StoreError as error:
        text = f"the result of {len(payload)} bytes is over the message limit, and"
        raise OutputError(ReplicaError(f"{text} {error}")) from error


def _serializer(name: str, direction: str) -> Serializer:
    try:
        return get_serializer(name)
    except ValueError as error:
        raise SerializationError(str(error), serializer=name, direction=direction) from None
