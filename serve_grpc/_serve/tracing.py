"""Trace contexts, and the context of a gRPC ingress: what Serve's metadata carry with a request.

The caller's half opens Serve's span `route_to_replica` and puts what is known into a
`RequestContext` message; the replica's half opens `replica_handle_request` as its child. Names and
attributes are those of Serve's `AsyncioRouter.assign_request` and `Replica._tracing_context`.
Nothing here runs for a call that carries no context in a process that does not trace.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private import tracing_utils
from ray.serve._private.common import RequestProtocol
from ray.util.tracing import tracing_helper

from serve_grpc._generated.replica_pb2 import RequestContext
from serve_grpc._serve.ingress_context import (
    ingress_context_from_bytes,
    ingress_context_to_bytes,
)
from serve_grpc.errors import SerializationError
from serve_grpc.foreign import run_foreign

__all__ = [
    "RouteSpan",
    "Scope",
    "context_of_call",
    "context_of_metadata",
    "is_tracing",
    "open_route_span",
]


def is_tracing() -> bool:
    """Whether Serve or Ray traces in this process; settled before its first call."""
    return bool(tracing_utils.is_tracing_enabled() or tracing_helper._is_tracing_enabled())


# ---------------------------------------------------------------- the caller


class RouteSpan:
    """Serve's span of a call at its caller, from `remote()` to the end of the call."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def propagated(self, callee: str) -> tuple[dict[str, str] | None, dict[str, str] | None]:
        """The trace contexts of Serve and Ray, with this span as the current one."""
        context = tracing_utils.set_span_in_context(self._span)
        token = tracing_utils.set_trace_context(context)
        try:
            return tracing_utils.create_propagated_context(), _ray_trace_context(callee)
        finally:
            tracing_utils.detach_trace_context(token)

    def end(self, error: BaseException | None) -> None:
        """End it; from any thread. Like Serve's, it tells of no other error than a cancel.

        Args:
            error: `CancelledError` of a call that was given up, else None.
        """
        # It may end in a span processor of the user's; many calls share this loop.
        if error is not None:
            run_foreign("record an exception", self._span.record_exception, error, escaped=True)
        run_foreign("end a span", self._span.end)


def open_route_span(
    *,
    deployment_name: str,
    app_name: str,
    request_id: str,
    call_method: str,
    route: str,
    multiplexed_model_id: str,
    is_streaming: bool,
) -> RouteSpan | None:
    """Open the span as a child of the current one; None if Serve does not trace this call."""
    if not tracing_utils.is_tracing_enabled():
        return None
    name = f"route_to_replica {deployment_name} {call_method}"
    attributes = tracing_utils.SpanAttributes
    span = tracing_utils.get_tracer().start_span(
        name,
        kind=tracing_utils.SpanKind.SERVER,
        context=tracing_utils.get_trace_context(),
        attributes={
            "resource.name": name,
            "request_id": request_id,
            "deployment": deployment_name,
            "app": app_name,
            "call_method": call_method,
            "route": route,
            "multiplexed_model_id": multiplexed_model_id,
            "is_streaming": is_streaming,
            "is_http_request": False,
            "is_grpc_request": False,
            attributes.RPC_SYSTEM: RequestProtocol.UNDEFINED,
            attributes.RPC_METHOD: call_method,
            attributes.RPC_SERVICE: deployment_name,
        },
    )
    # Serve sends no context of a span that is not sampled; the replica decides anew.
    return RouteSpan(span) if span.get_span_context().trace_flags.sampled else None


def context_of_call(
    span: RouteSpan | None, grpc_context: Any, callee: str
) -> RequestContext | None:
    """What a call carries to its replica; None if that is nothing.

    Args:
        callee: Deployment and method, as "Deployment.method".
        span: Of the call.
        grpc_context: Of the request that makes the call, which came through a gRPC ingress.

    Raises:
        Exception: `grpc_context` holds more than plain data, or a propagator wrote no text.
    """
    if span is not None:
        trace, ray_trace = span.propagated(callee)
    else:
        trace, ray_trace = None, _ray_trace_context(callee)
    return _message(trace, ray_trace, grpc_context)


def context_of_metadata(metadata: Any, callee: str) -> RequestContext | None:
    """The same for a request that Serve's own router assigns, from Serve's metadata of it."""
    ray_trace = _ray_trace_context(callee)
    return _message(metadata.tracing_context, ray_trace, metadata.grpc_context)


def _message(
    trace: dict[str, str] | None, ray_trace: dict[str, str] | None, grpc_context: Any
) -> RequestContext | None:
    ingress = b"" if grpc_context is None else ingress_context_to_bytes(grpc_context)
    if not (trace or ray_trace or ingress):
        return None
    return RequestContext(trace=trace, ray_trace=ray_trace, grpc_context=ingress)


def _ray_trace_context(callee: str) -> dict[str, str] | None:
    if not tracing_helper._is_tracing_enabled():
        return None
    opentelemetry = tracing_helper._get_opentelemetry()
    # As Ray's `_tracing_actor_method_invocation` does it, by whose calls Serve goes by reference:
    # where no span is current, as in a driver, this one begins the trace.
    with opentelemetry.trace.get_tracer(__name__).start_as_current_span(
        f"{callee} ray.remote", kind=opentelemetry.trace.SpanKind.PRODUCER
    ):
        context: dict[str, str] = tracing_helper._DictPropagator.inject_current_context()
    return context


# ---------------------------------------------------------------- the replica


class Scope:
    """The context of one request while its code runs on the replica, and Serve's span of it.

    Args:
        context: As it came; an empty one for a request without.
    """

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._manager: Any = None

    def enter(
        self,
        fields: dict[str, Any],
        *,
        replica_id: str,
        deployment_name: str,
        call_method: str,
        is_streaming: bool,
    ) -> None:
        """Open the span for the current task.

        Args:
            fields: Of `_RequestContext`; gets what the request carried.
            replica_id, deployment_name: Of this replica.
            call_method, is_streaming: Of the request.

        Raises:
            SerializationError: The gRPC context cannot be read.
        """
        trace = dict(self._context.trace) or None
        ray_trace = dict(self._context.ray_trace)
        if ray_trace and tracing_helper._is_tracing_enabled():
            # As in Ray's `_resume_span`, so that what this task calls in turn joins the trace; its
            # context ends with it.
            resumed = tracing_helper._DictPropagator.extract(ray_trace)
            tracing_helper._get_opentelemetry().context.attach(resumed)
        # As in Serve's `Replica._unpack_proxy_args`.
        fields["_ray_trace_ctx"] = ray_trace or trace
        if self._context.grpc_context:
            fields["grpc_context"] = _grpc_context(self._context.grpc_context)
        if not tracing_utils.is_tracing_enabled():
            return
        manager = tracing_utils.TraceContextManager(
            trace_name=f"replica_handle_request {deployment_name} {call_method}",
            trace_context=tracing_utils.extract_propagated_context(trace),
        )
        manager.__enter__()
        self._manager = manager
        attributes = tracing_utils.SpanAttributes
        manager.span.set_attributes(
            {
                "request_id": fields["request_id"],
                "replica_id": replica_id,
                "deployment": deployment_name,
                "app": fields["app_name"],
                "call_method": call_method,
                "route": fields["route"],
                "multiplexed_model_id": fields["multiplexed_model_id"],
                "is_streaming": is_streaming,
                attributes.RPC_SYSTEM: RequestProtocol.UNDEFINED,
                attributes.RPC_METHOD: call_method,
                attributes.RPC_SERVICE: deployment_name,
            }
        )

    def fail(self, error: BaseException) -> None:
        """Record on the span what the user's code raised."""
        if self._manager is not None:
            span = self._manager.span
            run_foreign("record an exception", span.record_exception, error, escaped=False)

    def leave(self) -> None:
        """End the span, in the task that `enter` was called in."""
        # Without the error: `TraceContextManager.__exit__` does nothing with one.
        if self._manager is not None:
            run_foreign("end a span", self._manager.__exit__, None, None, None)


def _grpc_context(data: bytes) -> Any:
    try:
        return ingress_context_from_bytes(data)
    except Exception as error:
        raise SerializationError(
            f"the gRPC context of the request cannot be read: {error!r}",
            serializer="msgpack",
            direction="request",
        ) from error
