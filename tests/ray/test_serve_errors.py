"""Errors of the package itself: options, limits, serialization, references, shut down handles."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException, RequestCancelledError

import serve_grpc
from serve_grpc.errors import (
    MessageTooLargeError,
    ObjectRefNotSupportedError,
    SerializationError,
    ServeGrpcError,
)

MIB = 1024 * 1024
LIMIT = 4 * MIB


# ------------------------------------------------------------ options


@pytest.mark.parametrize(
    "options",
    [
        {"request_serialization": "yaml"},
        {"response_serialization": "yaml"},
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
    ],
    ids=str,
)
def test_wrong_values_fail_in_options(bench, options):
    with pytest.raises(ValueError, match=r"serializer|timeout_s"):
        bench.options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"stream": 1},
        {"stream": "yes"},
        {"method_name": 5},
        {"multiplexed_model_id": None},
        {"session_id": 5},
        {"_by_reference": 0},
        {"_prefer_local_routing": None},
        {"request_serialization": 5},
        {"timeout_s": "1"},
        {"timeout_s": True},
        {"idempotent": "no"},
        {"no_such_option": 1},
    ],
    ids=str,
)
def test_wrong_types_fail_in_options(bench, options):
    with pytest.raises(TypeError):
        bench.options(**options)


def test_unknown_serializer_error_lists_the_known_ones(bench):
    with pytest.raises(ValueError, match="cloudpickle, msgpack, noop, orjson, pickle"):
        bench.options(request_serialization="yaml")


def test_local_routing_preference_after_the_first_call_is_refused_as_serve_does(bench):
    bench.remote(1).result(timeout_s=20)
    with pytest.raises(RuntimeError, match="_prefer_local_routing"):
        bench.options(_prefer_local_routing=True)


# ------------------------------------------------------------ limits


def test_request_over_the_limit_fails_alone(bench):
    response = bench.length.remote(b"x" * (LIMIT + 1))
    with pytest.raises(MessageTooLargeError) as raised:
        response.result(timeout_s=20)
    error = raised.value
    assert (error.direction, error.limit) == ("request", LIMIT)
    assert LIMIT < error.size < LIMIT + 1000
    assert error.request_id == response.request_id
    assert not error.may_have_executed
    assert "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH" in str(error)
    assert "_by_reference=True" in str(error)
    assert bench.remote(1).result(timeout_s=20) == 1


def test_response_over_the_limit_fails_alone(bench):
    response = bench.payload.remote(LIMIT + 1)
    with pytest.raises(MessageTooLargeError) as raised:
        response.result(timeout_s=20)
    error = raised.value
    assert (error.direction, error.limit) == ("response", LIMIT)
    assert LIMIT < error.size < LIMIT + 1000
    assert error.request_id == response.request_id
    assert error.may_have_executed
    assert bench.remote(1).result(timeout_s=20) == 1


def test_stream_item_over_the_limit_ends_its_stream(bench):
    stream = bench.options(method_name="items", stream=True).remote(2, LIMIT + 1)
    with pytest.raises(MessageTooLargeError) as raised:
        list(stream)
    assert raised.value.direction == "response"
    assert bench.remote(1).result(timeout_s=20) == 1


def test_payloads_up_to_the_limit_pass_in_both_directions(bench):
    raw = bench.options(request_serialization="noop", response_serialization="noop")
    payload = bytes(range(256)) * (LIMIT // 256)
    assert raw.remote(payload).result(timeout_s=30) == payload
    with pytest.raises(MessageTooLargeError):
        raw.remote(payload + b"x").result(timeout_s=30)


def test_many_large_payloads_at_once_and_small_calls_between_them(bench):
    large = [bench.length.remote(b"x" * (3 * MIB)) for _ in range(12)]
    small = [bench.remote(i) for i in range(50)]
    assert [response.result(timeout_s=30) for response in small] == list(range(50))
    assert [response.result(timeout_s=30) for response in large] == [3 * MIB] * 12


def test_oversize_payload_passes_by_reference(bench):
    handle = bench.options(_by_reference=True)
    assert handle.length.remote(b"x" * (LIMIT + 1)).result(timeout_s=30) == LIMIT + 1


# ------------------------------------------------------------ serialization


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson", "noop"])
def test_unserializable_argument_names_serializer_and_type(bench, name):
    handle = bench.options(request_serialization=name)
    response = handle.remote(sys._getframe())  # Serve makes locks picklable
    with pytest.raises(SerializationError) as raised:
        response.result(timeout_s=20)
    error = raised.value
    assert (error.serializer, error.direction) == (name, "request")
    assert "frame" in str(error)
    assert error.request_id == response.request_id
    assert not error.may_have_executed
    assert bench.remote(1).result(timeout_s=20) == 1


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson", "noop"])
def test_unserializable_result_names_serializer_and_type(bench, name):
    response = bench.options(response_serialization=name).unserializable.remote()
    with pytest.raises(SerializationError) as raised:
        response.result(timeout_s=20)
    error = raised.value
    assert (error.serializer, error.direction) == (name, "response")
    assert "Unserializable" in str(error)
    assert error.may_have_executed
    assert error.request_id == response.request_id


def test_unserializable_stream_item_ends_its_stream(bench):
    stream = bench.options(
        method_name="items", stream=True, response_serialization="orjson"
    ).remote(2, 3)
    with pytest.raises(SerializationError, match="bytes"):
        list(stream)


def test_noop_takes_one_positional_bytes_only(bench):
    noop = bench.options(request_serialization="noop")
    for args, kwargs in (((), {}), ((b"a", b"b"), {}), ((), {"value": b"a"}), (("a",), {})):
        with pytest.raises(SerializationError, match="bytes"):
            noop.remote(*args, **kwargs).result(timeout_s=20)


def test_serializer_the_replica_does_not_know_is_an_error_of_the_call(bench):
    import json

    serve_grpc.register_serializer("only-here", lambda v: json.dumps(v).encode(), json.loads)
    handle = bench.options(request_serialization="only-here", response_serialization="only-here")
    with pytest.raises(SerializationError, match="only-here"):
        handle.remote(1).result(timeout_s=20)
    assert bench.remote(1).result(timeout_s=20) == 1


# ------------------------------------------------------------ ObjectRefs of a by-value response


def test_object_refs_are_refused_at_once_while_the_call_runs(bench, key):
    response = bench.hold.remote(key)
    stream = bench.options(method_name="hold_stream", stream=True).remote(key, 0)

    async def ask():
        with pytest.raises(ObjectRefNotSupportedError, match="_by_reference=True"):
            await response._to_object_ref()
        with pytest.raises(ObjectRefNotSupportedError, match="_by_reference=True"):
            await stream._to_object_ref_gen()

    started_s = time.monotonic()
    asyncio.run(ask())
    with pytest.raises(ObjectRefNotSupportedError) as raised:
        response._to_object_ref_sync()
    with pytest.raises(ObjectRefNotSupportedError):
        stream._to_object_ref_gen_sync()
    assert time.monotonic() - started_s < 5  # the call itself lasts until its release
    assert isinstance(raised.value, RuntimeError)
    assert raised.value.request_id == response.request_id
    bench.release.remote(key).result(timeout_s=20)
    assert response.result(timeout_s=20) == key
    assert list(stream) == []
    with pytest.raises(ObjectRefNotSupportedError):
        response._to_object_ref_sync()


def test_object_ref_of_a_by_reference_response_is_given(bench):
    import ray

    ref = bench.options(_by_reference=True).remote("x")._to_object_ref_sync()
    assert ray.get(ref, timeout=20) == "x"


# ------------------------------------------------------------ after shutdown


def own_handle():
    """One that no other test has; `get_app_handle` gives the same to all."""
    return serve_grpc.wrap(serve.get_app_handle("bench"))


def test_calls_after_shutdown_of_the_handle_fail(bench):
    handle = own_handle().options(_by_reference=False)
    assert handle.remote(1).result(timeout_s=20) == 1
    handle.shutdown()
    with pytest.raises(ServeGrpcError, match="shut down") as raised:
        handle.remote(2).result(timeout_s=20)
    assert isinstance(raised.value, RayServeException)
    with pytest.raises(ServeGrpcError, match="shut down"):
        list(handle.options(method_name="items", stream=True).remote(2))
    assert bench.remote(3).result(timeout_s=20) == 3


@pytest.mark.parametrize("give_up", ["cancel", "deadline"])
def test_a_call_after_shutdown_whose_argument_is_not_there_fails(bench, key, give_up):
    argument = bench.hold.remote(key)
    handle = own_handle().options(_by_reference=False, timeout_s=5)
    assert handle.remote(1).result(timeout_s=20) == 1
    handle.shutdown()
    response = handle.remote(argument)
    if give_up == "cancel":
        response.cancel()
    with pytest.raises((ServeGrpcError, RequestCancelledError), match=r"shut down|cancelled"):
        response.result(timeout_s=20)
    argument.cancel()


def test_async_shutdown_of_a_handle(bench):
    handle = own_handle().options(_by_reference=False)

    async def main():
        assert await handle.remote(1) == 1
        await handle.shutdown_async()
        with pytest.raises(ServeGrpcError, match="shut down"):
            await handle.remote(2)

    asyncio.run(main())
