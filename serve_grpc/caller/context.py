"""A call that carries a context to its replica: a trace, or that of a gRPC ingress.

A class of its own, so that other calls pay nothing for it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.exceptions import RequestCancelledError

from serve_grpc._serve.tracing import RouteSpan, context_of_call, open_route_span
from serve_grpc.caller.call import Call
from serve_grpc.caller.fallback import NativeCall
from serve_grpc.errors import MessageTooLargeError, SerializationError, ServeGrpcError
from serve_grpc.protocol.caller import RequestFields

__all__ = ["MAX_CONTEXT_BYTES", "CallWithContext"]

MAX_CONTEXT_BYTES = 64 * 1024
"""It travels in the request's frame, and frames are small."""


class CallWithContext(Call):
    """A call of the request whose context is the current one.

    Args:
        fields: As for `Call`; gets the context.
        deployment_name, app_name: Of the called deployment.
        grpc_context: Serve's, None outside of a gRPC ingress' request.
        rest: As for `Call`.
    """

    __slots__ = ("_span",)

    def __init__(
        self,
        fields: RequestFields,
        *,
        deployment_name: str,
        app_name: str,
        grpc_context: Any,
        **rest: Any,
    ) -> None:
        super().__init__(fields, **rest)
        self._span: RouteSpan | None = None
        try:
            self._span = open_route_span(
                deployment_name=deployment_name,
                app_name=app_name,
                request_id=fields.request_id,
                call_method=fields.envelope.method,
                route=fields.envelope.route,
                multiplexed_model_id=fields.multiplexed_model_id,
                is_streaming=fields.envelope.stream,
            )
            callee = f"{deployment_name}.{fields.envelope.method}"
            fields.context = context_of_call(self._span, grpc_context, callee)
        except Exception as error:
            self._refuse(
                SerializationError(
                    f"the request's context cannot be sent: {error!r}",
                    serializer="msgpack",
                    direction="request",
                )
            )
            return
        size = 0 if fields.context is None else fields.context.ByteSize()
        if size > MAX_CONTEXT_BYTES:
            self._refuse(MessageTooLargeError(size, MAX_CONTEXT_BYTES, "request"))

    def _refuse(self, error: ServeGrpcError) -> None:
        error.request_id = self.fields.request_id
        self.fail(error)

    def become_child(self, parent_id: str) -> None:
        """As of `Call`; one that was refused has no parent to be taken from."""
        if not self.done:
            super().become_child(parent_id)

    def _finish(self) -> None:
        super()._finish()
        # Serve's own transport makes a span of its own.
        if self._span is not None and not isinstance(self.place, NativeCall):
            is_cancelled = isinstance(self.error, RequestCancelledError)
            self._span.end(asyncio.CancelledError() if is_cancelled else None)
