"""Other libraries' interceptors in a replica's server: welcome at the plain door, not in sessions.

Libraries that observe gRPC (Sentry, OpenTelemetry, Datadog, Elastic and others) replace
`grpc.aio.server` for the whole process, with a function that puts an interceptor of theirs before
the server's own. It runs a handler inside a span, and one that streams as a generator. For `Call`
and `CallStream` that is right. A session is no request: its span would last for hours and be the
parent of all that runs meanwhile. So ours comes first, and shows theirs requests only.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import _server

from serve_grpc.transport.status import abort

__all__ = ["Doors", "open_server"]

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


class Doors(grpc.aio.ServerInterceptor):
    """Before all other interceptors: they get neither sessions nor requests that are not proven.

    Args:
        service: Full name of our service.
        session: Handler of its sessions.
        read: Reads and checks the one request of any other call of it, in gRPC's place: given the
            call's context and full method.
    """

    def __init__(
        self,
        service: str,
        *,
        session: grpc.RpcMethodHandler,
        read: Callable[[Any, str], Awaitable[bytes]],
    ) -> None:
        self._methods = f"/{service}/"
        self._session_method = f"/{service}/Session"
        self._session = session
        self._read = read

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """The handler of a call."""
        method = handler_call_details.method
        if method == self._session_method:
            return self._session
        handler = await continuation(handler_call_details)
        if not method.startswith(self._methods) or handler is None or handler.request_streaming:
            return handler

        async def request_of(context: Any) -> Any:
            data = await self._read(context, method)
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                text = f"not a CallRequest: {error}"
                await abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)

        async def answer(_: object, context: Any) -> Any:
            result = handler.unary_unary(await request_of(context), context)
            return await result if inspect.isawaitable(result) else result

        async def stream(_: object, context: Any) -> Any:
            results = handler.unary_stream(await request_of(context), context)
            if inspect.isawaitable(results):  # of an interceptor that writes by itself
                return await results
            try:
                async for result in results:
                    await context.write(result)
            finally:
                if hasattr(results, "aclose"):  # a generator, and not only an iterator
                    await results.aclose()

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                stream, response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )


class _DoorsFirst(_server.Server):
    def __init__(
        self, thread_pool: Any, generic_handlers: Any, interceptors: Any, *options: Any
    ) -> None:
        ordered = sorted(interceptors, key=lambda each: not isinstance(each, Doors))
        super().__init__(thread_pool, generic_handlers, ordered, *options)


_swap = threading.Lock()


def open_server(*interceptors: grpc.aio.ServerInterceptor, **options: Any) -> grpc.aio.Server:
    """As `grpc.aio.server`, with what other libraries add; a `Doors` comes before all of it."""
    # gRPC has no public way to come before an interceptor that is added by whoever replaced
    # `grpc.aio.server`. All of them call gRPC's own in the end, which makes a `Server`.
    with _swap:
        original, _server.Server = _server.Server, _DoorsFirst
        try:
            return grpc.aio.server(interceptors=list(interceptors), **options)
        finally:
            _server.Server = original
