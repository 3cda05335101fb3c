"""Errors of the user's that mean something to a loop or to us are errors like any other."""

from __future__ import annotations

import asyncio

import pytest
from ray import serve
from ray.exceptions import RayTaskError

import serve_grpc
from serve_grpc.errors import ReplicaDiedError
from tests.ray.apps.odd import Bereaved, Refused, odd_app

STOPS = ["StopIteration", "StopAsyncIteration"]
UNARY = ["coroutine", "function"]
STREAMS = ["generator", "async_generator", "no_generator", "no_async_generator"]
PATIENCE_S = 20


@pytest.fixture(scope="module", params=["1", "0"], ids=["in threads", "on the loop"])
def odd(deploy, request):
    name = f"odd {request.param}"
    deploy(odd_app(RAY_SERVE_RUN_SYNC_IN_THREADPOOL=request.param), name)
    return serve_grpc.get_deployment_handle("Odd", name)


@pytest.fixture(scope="module")
def caller(odd):
    return serve_grpc.get_deployment_handle("Caller", odd.app_name)


def error_of(function, *arguments):
    with pytest.raises(RayTaskError) as raised:
        function(*arguments)
    return raised.value


def unary_error(handle, method, *arguments):
    return error_of(lambda: getattr(handle, method).remote(*arguments).result(timeout_s=PATIENCE_S))


def last_line(error):
    return str(error).strip().splitlines()[-1]


@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.parametrize("method", UNARY)
def test_a_stop_out_of_a_unary_method_is_a_runtime_error(odd, method, kind):
    serves, ours = (
        unary_error(odd.options(_by_reference=by_reference), method, kind)
        for by_reference in (True, False)
    )
    assert isinstance(ours, RuntimeError)
    assert isinstance(ours, RayTaskError)
    assert not isinstance(ours, (StopIteration, StopAsyncIteration))
    assert last_line(ours) == last_line(serves)


@pytest.mark.parametrize("kind", [*STOPS, "GeneratorExit"])
@pytest.mark.parametrize("method", STREAMS)
def test_a_stop_out_of_a_stream_never_ends_it_as_if_it_were_complete(odd, method, kind):
    got = []

    async def consume():
        async for item in stream.options(_by_reference=False).remote(kind):
            got.append(item)

    stream = odd.options(method_name=method, stream=True)
    of_async = error_of(lambda: asyncio.run(asyncio.wait_for(consume(), PATIENCE_S)))
    of_thread = error_of(list, stream.options(_by_reference=False).remote(kind))
    assert got == ([1] if not method.startswith("no_") else [])
    for error in (of_async, of_thread):
        assert isinstance(error, RayTaskError)
        assert not isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit))
        assert isinstance(error, RuntimeError) or kind == "GeneratorExit"


@pytest.mark.parametrize("kind", STOPS)
def test_a_stop_that_a_nested_call_raised_is_a_runtime_error(caller, kind):
    error = unary_error(caller.options(_by_reference=False), "nested", kind, False)
    assert isinstance(error, RuntimeError)
    assert not isinstance(error, (StopIteration, StopAsyncIteration))


@pytest.mark.parametrize("kind", ["Refused", "DeadlineExceededError", "MessageTooLargeError"])
@pytest.mark.parametrize("method", UNARY)
def test_an_error_of_our_tree_that_a_handler_raises_is_as_by_reference(odd, method, kind):
    serves, ours = (
        unary_error(odd.options(_by_reference=by_reference), method, kind)
        for by_reference in (True, False)
    )
    assert type(ours).__mro__[1:] == type(serves).__mro__[1:]
    assert type(ours.cause) is type(serves.cause)
    assert str(ours.cause) == str(serves.cause)
    for part in (f"in {method}", "in throw"):
        assert part in str(ours)


def test_an_error_of_our_tree_keeps_its_attributes(odd):
    error = unary_error(odd.options(_by_reference=False), "coroutine", "Refused")
    assert isinstance(error, Refused)
    assert error.cause.reason == "sold out"


@pytest.mark.parametrize("opt_in", [serve.deployment, serve_grpc.deployment])
def test_a_handler_that_lost_a_call_of_its_own_is_not_run_again(deploy, opt_in):
    app = opt_in(ray_actor_options={"num_cpus": 0.01})(Bereaved).bind()
    handle = deploy(app, f"bereaved {opt_in.__module__}")
    with pytest.raises(ReplicaDiedError) as raised:
        handle.lose.remote().result(timeout_s=PATIENCE_S)
    assert raised.value.may_have_executed
    assert handle.runs.remote().result(timeout_s=PATIENCE_S) == 1
