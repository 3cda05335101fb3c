"""What stands before a replica's server: our own interceptors, and those of other libraries.

Health and reflection ask for a proof here (`SignedMetadata`).

Libraries that observe gRPC (Sentry, OpenTelemetry, Datadog, Elastic and others) replace
`grpc.aio.server` for the whole process, with a function that puts an interceptor of theirs before
the server's own. It runs a handler inside a span, and one that streams as a generator. For `Call`
and `CallStream` that is right. A session is no request: its span would last for hours and be the
parent of all that runs meanwhile. So ours comes first, and shows theirs requests only.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import _server

from serve_grpc.carriers.grpc.status import abort
from serve_grpc.config import LOGGER_NAME
from serve_grpc.entrance.signed_calls import UNAUTHENTICATED, SignedCalls

__all__ = ["Doors", "SignedMetadata", "open_server"]

logger = logging.getLogger(LOGGER_NAME)

_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
"""Attributes of a handler, by whether its requests and its responses are streams."""

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


class Doors(grpc.aio.ServerInterceptor):
    """Before all other interceptors: they get neither sessions nor requests that are not proven.

    Args:
        service: Full name of our service.
        session: Handler of its sessions.
        read: Reads and checks the one request of any other call of it, or the first of several, in
            gRPC's place: given the call's context and full method.
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
        # `continuation` is not called: it leads to the interceptors of other libraries.
        if method == self._session_method:
            return self._session
        handler = await continuation(handler_call_details)
        if not method.startswith(self._methods) or handler is None:
            return handler

        async def request_of(context: Any) -> Any:
            data = await self._read(context, method)
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                text = f"not a request of {method}: {error}"
                await abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)

        call = getattr(handler, _KINDS[handler.request_streaming, handler.response_streaming])

        async def answer(_: object, context: Any) -> Any:
            result = call(await request_of(context), context)
            return await result if inspect.isawaitable(result) else result

        async def stream(_: object, context: Any) -> Any:
            results = call(await request_of(context), context)
            if inspect.isawaitable(results):  # of an interceptor that writes by itself
                return await results
            try:
                async for result in results:
                    await context.write(result)
            finally:
                if hasattr(results, "aclose"):  # a generator, and not only an iterator
                    await results.aclose()

        # Without a deserializer: what such a handler reads by hand comes as bytes.
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


class SignedMetadata(grpc.aio.ServerInterceptor):
    """Refuses calls of other services than ours without a proof. Runs once a call, not a message.

    Args:
        signed_calls: Checks proofs.
        own_service: Our service, which checks them itself: it has the bytes that they cover.
    """

    def __init__(self, signed_calls: SignedCalls, own_service: str) -> None:
        self._signed_calls = signed_calls
        self._own_methods = f"/{own_service}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Go on to the service, or to a refusal."""
        method = handler_call_details.method
        if not method.startswith(self._own_methods):
            metadata = handler_call_details.invocation_metadata
            if not await self._signed_calls.is_proven(metadata, method, b""):
                logger.debug("a call of %s is not proven", method)
                return grpc.unary_unary_rpc_method_handler(_refuse)
        return await continuation(handler_call_details)


async def _refuse(_: object, context: Any) -> None:
    await abort(context, grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED)


_swap = threading.Lock()


def open_server(*interceptors: grpc.aio.ServerInterceptor, **options: Any) -> grpc.aio.Server:
    """As `grpc.aio.server`, with what other libraries add; a `Doors` comes before all of it."""
    # gRPC has no public way to come before an interceptor that is added by whoever replaced
    # `grpc.aio.server`. All of them call gRPC's own in the end, which makes a `Server`.
    # Two servers may start in two threads, and the second must not save the first one's class.
    with _swap:
        original, _server.Server = _server.Server, _DoorsFirst
        try:
            return grpc.aio.server(interceptors=list(interceptors), **options)
        finally:
            _server.Server = original
