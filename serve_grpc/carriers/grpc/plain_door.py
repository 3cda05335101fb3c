"""The plain door: each request is a gRPC call of its own, for any client in any language.

Who may come in is decided before (`interceptors`, `serve`). What a request means is the
dispatcher's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from serve_grpc._generated.replica_pb2 import CallPart, CallReply, CallRequest
from serve_grpc.carriers.grpc.plain import PlainCall, abort_call
from serve_grpc.carriers.grpc.plain_input import PlainInput
from serve_grpc.carriers.grpc.status import abort
from serve_grpc.config import Settings

__all__ = ["PlainDispatcher", "PlainDoor"]

TRACE_KEYS = ("traceparent", "tracestate")


class PlainDispatcher(Protocol):
    """Who decides what plain requests mean. On the server's loop."""

    def on_plain_call(self, call: PlainCall) -> None:
        """A request through the plain door; answered through the call's methods."""

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """The plain caller went away or was answered."""


class PlainDoor:
    """Its methods, as gRPC calls them. Args: who handles requests; limits and windows."""

    def __init__(self, dispatcher: PlainDispatcher, settings: Settings) -> None:
        self._dispatcher = dispatcher
        self._settings = settings

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """By the name of the method."""
        written = {"response_serializer": CallReply.SerializeToString}
        request = {**written, "request_deserializer": CallRequest.FromString}
        parts = {**written, "request_deserializer": CallPart.FromString}
        return {
            "Call": grpc.unary_unary_rpc_method_handler(self._unary, **request),
            "CallStream": grpc.unary_stream_rpc_method_handler(self._stream, **request),
            "CallUpload": grpc.stream_unary_rpc_method_handler(self._unary, **parts),
            "CallExchange": grpc.stream_stream_rpc_method_handler(self._stream, **parts),
        }

    async def _unary(self, request: CallRequest | CallPart, context: Any) -> CallReply:
        async with self._open(request, context, is_stream=False) as call:
            output = await call.next()
            if isinstance(output, bytes):
                return CallReply(payload=output)
            assert output is not None, "a unary call ends with a result or an error"
            await abort_call(context, output)

    async def _stream(
        self, request: CallRequest | CallPart, context: Any
    ) -> AsyncIterator[CallReply]:
        async with self._open(request, context, is_stream=True) as call:
            while isinstance(output := await call.next(), bytes):
                yield CallReply(payload=output)
                if call.on_taken is not None:
                    call.on_taken(len(output))
            if output is not None:
                await abort_call(context, output)

    @contextlib.asynccontextmanager
    async def _open(
        self, request: CallRequest | CallPart, context: Any, *, is_stream: bool
    ) -> AsyncIterator[PlainCall]:
        """Hand a request to the dispatcher; it is closed when the block is left, for any reason.

        Args:
            request: The one message, or the first of several.
            context: Of the gRPC call.
            is_stream: Whether the result is a stream.
        """
        input_ = None
        if isinstance(request, CallPart):
            input_ = await self._input(request, context)
            request = request.start.request
        metadata = context.invocation_metadata() or ()
        call = PlainCall(
            request,
            is_stream=is_stream,
            timeout_s=context.time_remaining(),
            trace={k: v for k, v in metadata if k in TRACE_KEYS and isinstance(v, str)},
            input_=input_,
        )
        self._dispatcher.on_plain_call(call)
        reading = None
        if input_ is not None and input_.feed is not None:  # else it was refused
            reading = asyncio.get_running_loop().create_task(input_.run())
        try:
            yield call
        finally:
            if reading is not None:
                reading.cancel()  # the call is over: nobody reads on after that
            self._dispatcher.on_plain_call_closed(call)

    async def _input(self, first: CallPart, context: Any) -> PlainInput:
        if first.WhichOneof("part") != "start":
            text = "a call with a stream among its arguments begins with `start`"
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)
        settings = self._settings
        window = settings.stream_window_items, settings.stream_window_bytes
        return PlainInput(first.start.input, context.read, window, settings.max_message_bytes)
