"""What the user's code raises, and how it reaches the caller."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from tests.ray.apps.failures import Detailed


def drain(stream, got):
    for item in stream:
        got.append(item)


async def drain_async(stream, got):
    async for item in stream:
        got.append(item)


SERIALIZERS = ("cloudpickle", "pickle", "msgpack", "orjson")


@pytest.fixture(params=SERIALIZERS)
def handle(bench, request):
    return bench.options(request_serialization=request.param, response_serialization=request.param)


def test_user_exception_keeps_its_type_and_traceback_under_every_serializer(handle):
    with pytest.raises(ValueError, match="a bad value") as raised:
        handle.fail.remote("ValueError").result(timeout_s=20)
    assert isinstance(raised.value, RayTaskError)
    assert type(raised.value.cause) is ValueError
    assert "raise_kind(kind)" in str(raised.value)  # a line of the remote traceback
    assert "ServeReplica:bench:Outer" in str(raised.value)


def test_user_exception_under_noop(bench):
    handle = bench.options(request_serialization="noop", response_serialization="noop")
    with pytest.raises(KeyError):
        handle.fail.remote(b"no such kind").result(timeout_s=20)


def test_user_exception_keeps_its_attributes(handle):
    with pytest.raises(Detailed) as raised:
        handle.fail.remote("Detailed").result(timeout_s=20)
    assert raised.value.cause.code == 42
    assert raised.value.code == 42


def test_user_exception_is_the_same_by_reference_and_by_value(bench):
    caught = []
    for by_reference in (True, False):
        with pytest.raises(Detailed) as raised:
            bench.options(_by_reference=by_reference).fail.remote("Detailed").result(timeout_s=20)
        caught.append(raised.value)
    serves, ours = caught
    assert type(serves).__name__ == type(ours).__name__
    assert type(serves).__mro__[1:] == type(ours).__mro__[1:]
    assert (serves.args, serves.cause.args) == (ours.args, ours.cause.args) or (
        serves.cause.args == ours.cause.args
    )


def test_exception_of_a_thread_and_of_a_stream_arrive_alike(bench):
    with pytest.raises(ValueError, match="a bad value"):
        bench.fail_in_thread.remote("ValueError").result(timeout_s=20)
    stream = bench.options(method_name="fail_after", stream=True).remote(3, "ValueError")
    got = []
    with pytest.raises(ValueError, match="a bad value"):
        drain(stream, got)
    assert got == [0, 1, 2]


def test_async_stream_yields_its_items_before_the_error(bench):
    async def main():
        stream = bench.options(method_name="fail_after", stream=True).remote(2, "Detailed")
        got = []
        with pytest.raises(Detailed):
            await drain_async(stream, got)
        assert got == [0, 1]

    asyncio.run(main())


def test_unpicklable_exception_arrives_as_text(handle):
    with pytest.raises(RayTaskError) as raised:
        handle.fail.remote("Unpicklable").result(timeout_s=20)
    assert "Unpicklable" in str(raised.value)
    assert "holds a lock" in str(raised.value)


def test_exception_that_cannot_be_built_again_arrives_as_text(handle):
    with pytest.raises(RayTaskError) as raised:
        handle.fail.remote("TwoArguments").result(timeout_s=20)
    assert "TwoArguments" in str(raised.value)
    assert "one and two" in str(raised.value)


@pytest.mark.parametrize("method", ["fail", "fail_in_thread"])
@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "CancelledError"])
def test_base_exceptions_fail_their_call_and_nothing_else(bench, key, kind, method):
    pid = bench.pid.remote().result(timeout_s=20)
    held = bench.hold.remote(key)
    with pytest.raises((RayTaskError, RequestCancelledError)) as raised:
        bench.options(method_name=method).remote(kind).result(timeout_s=20)
    assert isinstance(raised.value, Exception)
    bench.release.remote(key).result(timeout_s=20)
    assert held.result(timeout_s=20) == key
    assert bench.pid.remote().result(timeout_s=20) == pid


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "CancelledError"])
def test_base_exceptions_in_a_stream_end_that_stream_only(bench, kind):
    pid = bench.pid.remote().result(timeout_s=20)
    stream = bench.options(method_name="fail_after", stream=True).remote(2, kind)
    got = []
    with pytest.raises((RayTaskError, RequestCancelledError)):
        drain(stream, got)
    assert got == [0, 1]
    assert bench.pid.remote().result(timeout_s=20) == pid


def test_cancelled_error_of_a_handler_does_not_cancel_the_awaiting_task(bench):
    async def main():
        with pytest.raises(RequestCancelledError):
            await bench.fail.remote("CancelledError")
        return await bench.remote("still here")

    assert asyncio.run(main()) == "still here"


@pytest.mark.parametrize("kind", ["StopIteration", "TimeoutError"])
def test_exceptions_with_a_meaning_of_their_own_arrive_as_themselves(bench, kind):
    with pytest.raises(RayTaskError) as raised:
        bench.fail.remote(kind).result(timeout_s=20)
    assert kind in str(raised.value)


@pytest.mark.parametrize("by_reference", [True, False])
def test_error_of_a_nested_call_keeps_its_type_and_both_tracebacks(bench, by_reference):
    outer = bench.options(_by_reference=by_reference)
    with pytest.raises(RayTaskError) as raised:
        outer.call_inner.remote("fail", "Detailed").result(timeout_s=20)
    assert "ServeReplica:bench:Inner" in str(raised.value)
    assert isinstance(raised.value, Detailed)
    assert raised.value.code == 42


def test_missing_method_lists_those_there_are(bench):
    with pytest.raises(Exception, match="no_such_method") as raised:
        bench.no_such_method.remote().result(timeout_s=20)
    assert "arguments" in str(raised.value)
    assert "hold_stream" in str(raised.value)
    assert "record_replica_metadata" not in str(raised.value)  # ours, on every opted-in replica


def test_wrong_arguments_raise_type_error_of_the_users_method(bench):
    with pytest.raises(TypeError, match="positional argument"):
        bench.pid.remote(1, 2).result(timeout_s=20)


def test_generator_without_stream_says_what_to_do(bench):
    for method in ("items", "items_in_thread"):
        with pytest.raises(TypeError, match=r"stream=True"):
            bench.options(method_name=method).remote(2).result(timeout_s=20)


@pytest.mark.parametrize("by_reference", [True, False])
def test_stream_of_a_method_that_is_no_generator_says_so(bench, by_reference):
    stream = bench.options(method_name="pid", stream=True, _by_reference=by_reference).remote()
    with pytest.raises(TypeError, match="did not return a generator"):
        list(stream)
