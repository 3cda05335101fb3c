"""What a call takes along to its replica: a trace, or the context of a gRPC ingress.

Nothing here runs for a call that takes nothing along.
"""

from __future__ import annotations

from typing import Any

from serve_grpc._serve.tracing import context_of_call, open_route_span
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.outcomes import Raised, TooLarge
from serve_grpc.errors import SerializationError

__all__ = ["MAX_CONTEXT_BYTES", "take_context_along"]

MAX_CONTEXT_BYTES = 64 * 1024
"""It travels in the request's frame, and frames are small."""


def take_context_along(
    delivery: Delivery, *, deployment_name: str, app_name: str, grpc_context: Any
) -> None:
    """Open the span of a new call, and put what is to arrive with it into its fields.

    Ends the call if that cannot travel. In the thread of `remote()`.

    Args:
        delivery: Of a call of the request whose context is the current one.
        deployment_name, app_name: Of the called deployment.
        grpc_context: Serve's, None outside of a gRPC ingress' request.
    """
    fields = delivery.call.fields
    try:
        delivery.span = open_route_span(
            deployment_name=deployment_name,
            app_name=app_name,
            request_id=fields.request_id,
            call_method=fields.envelope.method,
            route=fields.envelope.route,
            multiplexed_model_id=fields.multiplexed_model_id,
            is_streaming=fields.envelope.stream,
        )
        callee = f"{deployment_name}.{fields.envelope.method}"
        fields.context = context_of_call(delivery.span, grpc_context, callee)
    except Exception as error:
        text = f"the request's context cannot be sent: {error!r}"
        refusal = SerializationError(text, serializer="msgpack", direction="request")
        refusal.request_id = fields.request_id
        delivery.end(Raised(refusal))
        return
    size = 0 if fields.context is None else fields.context.ByteSize()
    if size > MAX_CONTEXT_BYTES:
        delivery.end(TooLarge(size, MAX_CONTEXT_BYTES, "request"))
