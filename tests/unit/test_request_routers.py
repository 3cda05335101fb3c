"""Requests that Serve's own router assigns: which are ours, and what becomes of them."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.replica_wrapper import gRPCReplicaWrapper

from bench.stand_ins.serve import running
from serve_grpc._serve.request_routers import (
    AssignedRequest,
    assigned_behind,
    carry_requests,
    mark,
)
from serve_grpc.errors import ObjectRefNotSupportedError
from tests.fakes.serve_objects import new_request_router

METADATA = RequestMetadata(
    request_id="request",
    internal_request_id="internal",
    call_method="echo",
    route="/echo",
    app_name="app",
    multiplexed_model_id="model",
    session_id="session",
    is_streaming=True,
    request_serialization="orjson",
    response_serialization="msgpack",
)


class Assigned:
    """A call of ours: keeps what is asked of it."""

    request_id = "request"

    def __init__(self) -> None:
        self.is_cancelled = False
        self.callbacks: list[Any] = []

    async def admission(self) -> tuple[bool, int]:
        return False, 7

    def add_done_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def cancel(self) -> None:
        self.is_cancelled = True

    def value(self, timeout_s: float | None) -> Any:
        return "value", timeout_s

    async def value_async(self) -> Any:
        return "value"

    def next_item(self) -> Any:
        return "item"

    async def next_item_async(self) -> Any:
        return "item, async"


class Sent:
    """What was sent through us, as calls of ours."""

    def __init__(self) -> None:
        self.requests: list[AssignedRequest] = []
        self.calls: list[Assigned] = []

    def __call__(self, request: AssignedRequest) -> Any:
        self.requests.append(request)
        self.calls.append(Assigned())
        return self.calls[-1]


@pytest.fixture
def sent() -> Sent:
    return Sent()


def equipped(sent: Sent, *, has_endpoint: bool = True) -> Any:
    """Serve's view of a replica that its router makes now."""
    router = new_request_router()
    carry_requests(router, sent, lambda info: has_endpoint)
    (info,) = running(1, max_ongoing_requests=5)
    return router._create_replica_wrapper_func(info)


def request(metadata: Any) -> Any:
    return SimpleNamespace(metadata=metadata, args=["a", 1], kwargs={"b": 2})


def test_a_marked_request_is_carried_as_it_says(sent: Sent) -> None:
    replica = equipped(sent)
    metadata = mark(METADATA, deadline_s=5.0, is_idempotent=True)
    replica._grpc_replica_wrapper.send_request_python(request(metadata), with_rejection=True)
    (found,) = sent.requests
    assert (found.replica_id, found.args, found.kwargs) == ("replica-0", ("a", 1), {"b": 2})
    assert (found.deadline_s, found.is_idempotent, found.may_be_refused) == (5.0, True, True)
    assert found.internal_request_id == "internal"
    fields, envelope = found.fields, found.fields.envelope
    assert (envelope.method, envelope.route, envelope.app_name) == ("echo", "/echo", "app")
    assert (envelope.request_serializer, envelope.response_serializer) == ("orjson", "msgpack")
    assert envelope.stream is True
    assert (fields.request_id, fields.payload) == ("request", b"")
    assert (fields.multiplexed_model_id, fields.session_id) == ("model", "session")
    assert fields.reserved_slot == ""


def test_where_serve_reserved_a_slot_it_is_told(sent: Sent) -> None:
    metadata = mark(METADATA, deadline_s=None, is_idempotent=False)
    metadata._reserved_slot_token = "slot"
    wrapper = equipped(sent)._grpc_replica_wrapper
    wrapper.send_request_python(request(metadata), with_rejection=False)
    (found,) = sent.requests
    assert (found.fields.reserved_slot, found.may_be_refused) == ("slot", False)


def test_a_request_of_serves_own_handle_keeps_serves_transport(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def send(self: Any, pr: Any, *, with_rejection: bool) -> str:
        taken.append((self, pr, with_rejection))
        return "over Serve's"

    monkeypatch.setattr(gRPCReplicaWrapper, "send_request_python", send)
    monkeypatch.setattr(gRPCReplicaWrapper, "__init__", lambda self, stub, actor_id: None)
    wrapper = equipped(sent)._grpc_replica_wrapper
    plain = request(METADATA)
    for _ in range(2):
        assert wrapper.send_request_python(plain, with_rejection=True) == "over Serve's"
    assert sent.requests == []
    assert taken[0][1:] == (plain, True)
    assert taken[0][0] is taken[1][0]  # one sender of Serve's for each replica


def test_a_replica_without_an_endpoint_is_left_alone(sent: Sent) -> None:
    assert equipped(sent, has_endpoint=False)._grpc_replica_wrapper is None


def test_replicas_that_are_there_already_are_equipped_too(sent: Sent) -> None:
    router = new_request_router()
    with_endpoint, without = (
        router._create_replica_wrapper_func(info) for info in running(2, max_ongoing_requests=5)
    )
    router.curr_replicas = {"a": with_endpoint, "b": without}
    carry_requests(router, sent, lambda info: info is with_endpoint._replica_info)
    assert with_endpoint._grpc_replica_wrapper is not None
    assert without._grpc_replica_wrapper is None


def test_a_java_replica_has_no_endpoint(sent: Sent) -> None:
    with pytest.raises(RuntimeError, match="Java"):
        equipped(sent)._grpc_replica_wrapper.send_request_java(request(METADATA))


def test_a_marked_request_travels_elsewhere_as_what_serve_knows() -> None:
    back = pickle.loads(pickle.dumps(mark(METADATA, deadline_s=5.0, is_idempotent=True)))
    assert type(back) is RequestMetadata
    assert back == METADATA


def result_of(sent: Sent) -> tuple[Any, Assigned]:
    """What Serve's router gets for a marked request, and the call behind it."""
    metadata = mark(METADATA, deadline_s=None, is_idempotent=False)
    wrapper = equipped(sent)._grpc_replica_wrapper
    result = wrapper.send_request_python(request(metadata), with_rejection=True)
    return result, sent.calls[0]


def test_serves_responses_ask_our_call(sent: Sent) -> None:
    result, call = result_of(sent)

    async def main() -> None:
        refused = await result.get_rejection_response()
        assert (refused.accepted, refused.num_ongoing_requests) == (False, 7)
        assert await result.get_async() == "value"
        assert await result.__anext__() == "item, async"

    asyncio.run(main())
    assert result.get(3.0) == ("value", 3.0)
    assert next(result) == "item"
    result.add_done_callback(print)
    assert call.callbacks == [print]
    result.cancel()
    assert call.is_cancelled


def test_a_call_by_value_is_no_object_ref(sent: Sent) -> None:
    result, _ = result_of(sent)
    with pytest.raises(ObjectRefNotSupportedError, match="_to_object_ref_sync"):
        result.to_object_ref()
    with pytest.raises(ObjectRefNotSupportedError, match="_to_object_ref"):
        asyncio.run(result.to_object_ref_async())
    with pytest.raises(ObjectRefNotSupportedError, match="_to_object_ref_gen"):
        result.to_object_ref_gen()


def test_behind_a_response_is_our_call_or_none(sent: Sent) -> None:
    result, call = result_of(sent)

    def response(of: Any) -> Any:
        async def fetch() -> Any:
            return of

        return SimpleNamespace(_fetch_future_result_async=fetch)

    assert asyncio.run(assigned_behind(response(result))) is call
    assert asyncio.run(assigned_behind(response(object()))) is None
