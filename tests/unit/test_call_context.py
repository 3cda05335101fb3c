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
from serve_grpc.caller.call import Call
from serve_grpc.caller.context import MAX_CONTEXT_BYTES, take_context_along
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.outcomes import Outcome, Raised, Result, Value
from serve_grpc.caller.serve_calls import ServeCalls
from serve_grpc.errors import MessageTooLargeError, SerializationError
from serve_grpc.mailbox import mailbox_of
from serve_grpc.routing.retry import RetryBudget
from tests.fakes.deliveries import Chooser
from tests.unit.sessions import fields
from tests.unit.sessions_loop import TransportLoop


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


def new_delivery(transport: TransportLoop, context: Any = None) -> Delivery:
    mailbox = mailbox_of(transport.loop)
    call = Call(fields(), mailbox=mailbox, response_loads=pickle.loads)
    delivery = Delivery(call, Chooser())
    take_context_along(delivery, deployment_name="callee", app_name="app", grpc_context=context)
    return delivery


def end(transport: TransportLoop, delivery: Delivery, outcome: Outcome) -> None:
    """End a call, and wait for what is posted then."""
    delivery.end(outcome)
    transport.run(lambda: None)


def in_a_scope(context: RequestContext) -> tuple[Scope, dict[str, Any]]:
    """Enter one; with the fields of the request context that it filled."""
    request = {"route": "/", "request_id": "id", "app_name": "app", "multiplexed_model_id": ""}
    scope = Scope(context)
    scope.enter(
        request, replica_id="r", deployment_name="callee", call_method="m", is_streaming=False
    )
    return scope, request


def test_a_call_with_nothing_to_carry_carries_nothing(transport: TransportLoop) -> None:
    assert new_delivery(transport).call.fields.context is None


def test_the_replicas_span_is_a_child_of_the_calls(
    transport: TransportLoop, tracing: Tracing
) -> None:
    tracing.start()
    delivery = new_delivery(transport)
    sent = delivery.call.fields.context
    assert sent is not None
    assert tracing.spans == []

    async def run() -> Any:
        scope, request = in_a_scope(sent)
        scope.fail(KeyError("missing"))
        scope.leave()
        return request["_ray_trace_ctx"]

    assert asyncio.run(run()) == dict(sent.trace)
    end(transport, delivery, Result(b""))
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
    end(transport, new_delivery(transport), Raised(error))
    (span,) = tracing.spans
    assert [event.attributes["exception.type"] for event in span.events] == recorded


def test_a_trace_that_is_not_sampled_is_not_carried(
    transport: TransportLoop, tracing: Tracing
) -> None:
    tracing.start(ALWAYS_OFF)
    delivery = new_delivery(transport)
    assert delivery.call.fields.context is None
    end(transport, delivery, Result(b""))
    assert tracing.spans == []


def test_a_call_over_serves_own_transport_has_no_span_of_ours(
    transport: TransportLoop, tracing: Tracing
) -> None:
    tracing.start()
    delivery = new_delivery(transport)

    class Response:
        """Of Serve's own handle: no replica has it yet."""

        async def _fetch_future_result_async(self) -> None:
            await asyncio.Event().wait()

        def cancel(self) -> None:
            """Nothing runs."""

    left = ServeCalls(RetryBudget(0))
    delivery.make_serve_call = Response
    transport.run(lambda: left.start(delivery, is_fallback=False))
    transport.run(delivery.end, Value(1))
    transport.run(lambda: None)
    assert tracing.spans == []


def test_a_span_processor_that_raises_does_not_hinder_the_call(
    transport: TransportLoop, tracing: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing.start()
    delivery = new_delivery(transport)
    call = delivery.call
    assert delivery.span is not None
    monkeypatch.setattr(type(delivery.span._span), "end", lambda _: 1 / 0)
    end(transport, delivery, Value(1))
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
    sent = new_delivery(transport, context).call.fields.context
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
    call = new_delivery(transport, grpc_context(note)).call
    call.become_child("parent")
    with pytest.raises(kind) as raised:
        call.result()
    assert raised.value.request_id == "request"
    assert "parent" not in serve_context._in_flight_requests
