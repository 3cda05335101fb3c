"""What a call carries beside its request: traces and the context of a gRPC ingress, both halves."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

import grpc
import msgpack
import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from ray.serve import context as serve_context
from ray.serve._private import tracing_utils
from ray.serve.exceptions import RequestCancelledError
from ray.serve.grpc_util import RayServegRPCContext

from serve_grpc._generated.replica_pb2 import RequestContext
from serve_grpc._serve.tracing import Scope
from serve_grpc.caller.context import MAX_CONTEXT_BYTES, CallWithContext
from serve_grpc.caller.fallback import NativeCall
from serve_grpc.errors import MessageTooLargeError, SerializationError
from tests.unit.sessions import fields
from tests.unit.transport_loop import TransportLoop


class Rpc:
    """What gRPC tells of a call: an authenticated one, with binary metadata."""

    def __init__(self, note: Any) -> None:
        self._note = note

    def __getattr__(self, name: str) -> Any:
        answers = {
            "auth_context": {"x509_common_name": [b"somebody"]},
            "code": 0,
            "details": b"",
            "invocation_metadata": (("note", self._note), ("note-bin", b"\x00\xff")),
            "peer": "ipv4:127.0.0.1:1",
            "peer_identities": [b"somebody"],
            "peer_identity_key": "x509_common_name",
            "trailing_metadata": (("request_id", "id"),),
        }
        return lambda: answers[name]


def grpc_context(note: Any) -> RayServegRPCContext:
    """Serve's, of a request whose metadata hold the note."""
    return RayServegRPCContext(Rpc(note))


class Tracing:
    """Serve's tracing in this process, as a replica sets it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._exporter = InMemorySpanExporter()

    def start(self, sampler: Any = ALWAYS_ON) -> None:
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._monkeypatch.setattr(tracing_utils, "_tracer", provider.get_tracer("test"))
        self._monkeypatch.setattr(tracing_utils, "is_tracing_enabled", lambda: True)

    @property
    def spans(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracing]:
    token = otel_context.attach(otel_context.Context())
    yield Tracing(monkeypatch)
    otel_context.detach(token)


def new_call(transport: TransportLoop, context: Any = None) -> CallWithContext:
    call = transport.new_call()
    return CallWithContext(
        fields(),
        deployment_name="callee",
        app_name="app",
        grpc_context=context,
        owner=transport,
        mailbox=call._mailbox,
        response_loads=call.response_loads,
        deadline_s=None,
        is_idempotent=False,
    )


def in_a_scope(context: RequestContext) -> tuple[Scope, dict[str, Any]]:
    """Enter one; with the fields of the request context that it filled."""
    request = {"route": "/", "request_id": "id", "app_name": "app", "multiplexed_model_id": ""}
    scope = Scope(context)
    scope.enter(
        request, replica_id="r", deployment_name="callee", call_method="m", is_streaming=False
    )
    return scope, request


def test_a_call_with_nothing_to_carry_carries_nothing(transport: TransportLoop) -> None:
    assert new_call(transport).fields.context is None


def test_the_replicas_span_is_a_child_of_the_calls(
    transport: TransportLoop, tracing: Tracing
) -> None:
    tracing.start()
    call = new_call(transport)
    sent = call.fields.context
    assert sent is not None
    assert tracing.spans == []

    async def run() -> Any:
        scope, request = in_a_scope(sent)
        scope.fail(KeyError("missing"))
        scope.leave()
        return request["_ray_trace_ctx"]

    assert asyncio.run(run()) == dict(sent.trace)
    call.succeed(b"")
    replica, route = tracing.spans
    assert (route.name, route.parent) == ("route_to_replica callee predict", None)
    assert (replica.name, replica.parent.span_id) == (
        "replica_handle_request callee m",
        route.context.span_id,
    )
    assert [event.attributes["exception.type"] for event in replica.events] == ["KeyError"]


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (RequestCancelledError("id"), ["asyncio.exceptions.CancelledError"]),
        (ValueError("of the replica's code, in its span"), []),
    ],
)
def test_the_calls_span_tells_only_of_a_cancel(
    transport: TransportLoop, tracing: Tracing, error: BaseException, recorded: list[str]
) -> None:
    tracing.start()
    new_call(transport).fail(error)
    (span,) = tracing.spans
    assert [event.attributes["exception.type"] for event in span.events] == recorded


def test_a_trace_that_is_not_sampled_is_not_carried(
    transport: TransportLoop, tracing: Tracing
) -> None:
    tracing.start(ALWAYS_OFF)
    call = new_call(transport)
    assert call.fields.context is None
    call.succeed(b"")
    assert tracing.spans == []


def test_a_call_over_serves_own_transport_has_no_span_of_ours(
    transport: TransportLoop, tracing: Tracing
) -> None:
    tracing.start()
    call = new_call(transport)
    call.place = object.__new__(NativeCall)
    call.succeed_with(1)
    assert tracing.spans == []


def test_a_span_processor_that_raises_does_not_hinder_the_call(
    transport: TransportLoop, tracing: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing.start()
    call = new_call(transport)
    monkeypatch.setattr(type(call._span._span), "end", lambda _: 1 / 0)
    call.succeed_with(1)
    assert call.result() == 1


def test_rays_trace_context_comes_before_serves() -> None:
    _, request = in_a_scope(RequestContext(trace={"a": "serve"}, ray_trace={"a": "ray"}))
    assert request["_ray_trace_ctx"] == {"a": "ray"}
    _, request = in_a_scope(RequestContext())
    assert request["_ray_trace_ctx"] is None


def test_the_grpc_context_arrives_as_it_was(transport: TransportLoop) -> None:
    context = grpc_context("note")
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_compression(grpc.Compression.Gzip)
    context.set_details("not here")
    context.set_trailing_metadata([("more", "of it")])
    sent = new_call(transport, context).fields.context
    assert sent is not None
    _, request = in_a_scope(sent)
    arrived = request["grpc_context"]
    assert type(arrived) is RayServegRPCContext
    assert vars(arrived) == vars(context)
    assert arrived.invocation_metadata() == [("note", "note"), ("note-bin", b"\x00\xff")]
    assert arrived.code() is grpc.StatusCode.NOT_FOUND
    assert arrived._compression is grpc.Compression.Gzip


class Touch:
    """Unpickling it is noticed."""

    noticed: ClassVar[list[str]] = []

    def __reduce__(self) -> Any:
        return self.noticed.append, ("unpickled",)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        pickle.dumps(Touch()),
        msgpack.packb([1]),
        msgpack.packb({"code": 1}),
        msgpack.packb({"__class__": 1}),
        msgpack.packb({1: 1}),
        msgpack.packb({"_code": msgpack.ExtType(1, b"StatusCode.NONE")}),
        msgpack.packb({"_code": msgpack.ExtType(1, b"Popen.x")}),
        msgpack.packb({"_code": msgpack.ExtType(2, b"\x01")}),
        msgpack.packb({"_code": msgpack.ExtType(9, b"")}),
    ],
    ids=repr,
)
def test_bytes_that_are_no_grpc_context_fail_the_call_alone(data: bytes) -> None:
    with pytest.raises(SerializationError, match="gRPC context"):
        in_a_scope(RequestContext(grpc_context=data))
    assert Touch.noticed == []


@pytest.mark.parametrize(
    ("note", "kind"),
    [(lambda: None, SerializationError), ("x" * MAX_CONTEXT_BYTES, MessageTooLargeError)],
    ids=["a function", "too large"],
)
def test_a_context_that_cannot_travel_fails_the_call(
    transport: TransportLoop, note: Any, kind: type[Exception]
) -> None:
    call = new_call(transport, grpc_context(note))
    call.become_child("parent")
    with pytest.raises(kind) as raised:
        call.result()
    assert raised.value.request_id == "request"
    assert "parent" not in serve_context._in_flight_requests
