"""Row 18, and what every error must keep: no error of gRPC, no CancelledError that nobody caused,
and the truth about whether the call may have executed.
"""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import pytest
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

import serve_grpc
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaError,
    ServeGrpcError,
)
from tests.faults.calls import SETTLE_S, outcome_of, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.replicas import pids_of
from tests.ray.apps.plain import Plain
from tests.ray.apps.routed import ByFirstArgument
from tests.ray.apps.troubled import TROUBLED
from tests.ray.waiting import eventually

KINDS = ["SystemExit", "KeyboardInterrupt", "CancelledError"]


@pytest.fixture(scope="module")
def plain(deploy):
    """Not opted in: its calls go over Serve's own transport."""
    app = serve.deployment(ray_actor_options={"num_cpus": 0.01})(Plain).bind()
    return deploy(app, "errors-plain")


@pytest.fixture(params=[None, 30], ids=["without_deadline", "with_deadline"])
def over_serves(plain, request):
    plain.remote(1).result(timeout_s=20)
    return plain.options(timeout_s=request.param)


def outcome(response):
    """What an `await` gives."""

    async def main():
        return await asyncio.wait_for(outcome_of("x", response), 30)

    return asyncio.run(main())


# ------------------------------------------------------------ what handlers raise


@pytest.mark.parametrize("method", ["fail", "fail_in_thread", "fail_in_stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_base_exceptions_of_a_handler_end_its_call_only(outer, board, measured, kind, method):
    pids = pids_of(outer)
    held = outer.remote(board.path, "held", 0.3)
    eventually(lambda: board.count("start") == 1)
    is_stream = method == "fail_in_stream"
    error = outcome(outer.options(method_name=method, stream=is_stream).remote(kind)).error
    is_alive = held.result(timeout_s=20) == "held" and pids_of(outer) == pids
    fault = "a handler raises SystemExit, KeyboardInterrupt or CancelledError"
    measured(
        18, fault, "replica alive, its other call undisturbed", "yes", "yes" if is_alive else kind
    )
    assert isinstance(error, RequestCancelledError if kind == "CancelledError" else RayTaskError)
    assert is_alive


# ------------------------------------------------------------ over Serve's own transport


def test_request_over_the_limit_is_ours_over_serves_transport(over_serves):
    error = outcome(over_serves.remote(b"x" * (5 << 20))).error
    assert isinstance(error, MessageTooLargeError)
    assert error.size > error.limit == 4 << 20
    assert error.request_id


def test_response_over_the_limit_is_an_error_of_ours_over_serves_transport(over_serves):
    error = outcome(over_serves.large.remote(5 << 20)).error
    assert isinstance(error, ServeGrpcError)
    assert error.may_have_executed


def test_exception_that_the_serializer_cannot_carry_over_serves_transport(over_serves):
    handle = over_serves.options(request_serialization="msgpack", response_serialization="msgpack")
    error = outcome(handle.fail.remote("ValueError")).error
    assert isinstance(error, ReplicaError)
    assert error.may_have_executed
    stream = handle.options(method_name="fail_in_stream", stream=True).remote("ValueError")
    assert isinstance(outcome(stream).error, ReplicaError)


@pytest.mark.parametrize("method", ["fail", "fail_in_stream"])
def test_cancelled_error_of_a_handler_over_serves_transport(over_serves, method):
    handle = over_serves.options(method_name=method, stream=method == "fail_in_stream")
    assert isinstance(outcome(handle.remote("CancelledError")).error, RequestCancelledError)


@pytest.mark.parametrize("kind", ["ValueError", "Unpicklable", "TwoArguments", "TimeoutError"])
def test_other_exceptions_over_serves_transport_are_not_grpcs(over_serves, kind):
    error = outcome(over_serves.fail.remote(kind)).error
    assert isinstance(error, Exception)
    assert not isinstance(error, grpc.RpcError)


def test_a_task_that_awaits_a_call_over_serves_transport_can_be_cancelled(over_serves):
    async def main():
        task = asyncio.ensure_future(outcome_of("x", over_serves.hold.remote()))
        await over_serves.remote(1)
        task.cancel()
        return await asyncio.wait_for(task, 20)

    assert isinstance(asyncio.run(main()).error, asyncio.CancelledError)


@pytest.mark.long
def test_replica_killed_under_calls_over_serves_transport(deploy, callers):
    """Serve repeats some of them, so that they end with their deadline."""
    app = serve.deployment(ray_actor_options={"num_cpus": 0.01}, health_check_period_s=0.5)(Plain)
    handle = deploy(app.bind(), "plain-killed")
    pid = handle.pid.remote().result(timeout_s=20)
    held = handle.options(timeout_s=3).hold.remote
    streamed = handle.options(timeout_s=3, stream=True, method_name="hold_stream").remote
    calls = [("unary", held) for _ in range(20)] + [("stream", streamed) for _ in range(20)]
    running = callers.start(outcomes_of(calls))
    assert handle.remote(1).result(timeout_s=20) == 1
    os.kill(pid, signal.SIGKILL)
    outcomes = running.result(SETTLE_S)
    assert all(isinstance(o.error, (RayError, ServeGrpcError)) for o in outcomes)


# ------------------------------------------------------------ whether it may have executed


def test_error_of_a_nested_call_says_that_the_outer_one_executed(outer):
    error = outcome(outer.inner_expires.remote(1e-6)).error
    assert isinstance(error, DeadlineExceededError)
    assert not error.cause.may_have_executed  # the nested one
    assert error.may_have_executed


def test_deadline_after_a_lost_try_says_that_the_call_may_have_executed(deploy, board, callers):
    handle = deploy(TROUBLED.options(num_replicas=1).bind(), "lost-try")
    pid = handle.pid.remote().result(timeout_s=20)
    handle = handle.options(idempotent=True, timeout_s=1)
    running = callers.start(outcomes_of([("x", lambda: handle.remote(board.path, "x", 30))]))
    eventually(lambda: board.count("start") == 1)
    os.kill(pid, signal.SIGKILL)
    (lost,) = running.result(SETTLE_S)
    assert isinstance(lost.error, DeadlineExceededError)
    assert check(board, [lost], may_repeat=True) == NOTHING_WRONG


@pytest.fixture(scope="module")
def assigned(deploy, tmp_path_factory):
    """Serve's own router assigns its calls; sessions carry them."""
    path = str(tmp_path_factory.mktemp("assigned") / "notes")
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument, request_router_kwargs={"path": path}
    )
    return deploy(TROUBLED.options(request_router_config=config).bind(), "assigned-errors")


@pytest.mark.long
@pytest.mark.parametrize("idempotent", [False, True])
def test_an_error_of_a_nested_call_repeats_no_assigned_call(assigned, board, idempotent):
    """The handler ends with the error of a call that was lost, and could be repeated."""
    handle = assigned.options(idempotent=idempotent)
    error = outcome(handle.fail_with_lost.remote(0, board.path, "x")).error
    assert isinstance(error, RayTaskError)
    assert error.may_have_executed
    assert board.count("start") == 1


@pytest.mark.long
def test_cancelled_error_of_a_handler_of_an_assigned_call(assigned):
    error = outcome(assigned.fail_at.remote(0, "CancelledError")).error
    assert isinstance(error, RequestCancelledError)


# ------------------------------------------------------------ nothing waits for ever


def test_an_argument_whose_call_was_cancelled_fails_the_call_that_waits_for_it(outer):
    async def main():
        response = outer.through.remote("/", "never-starts-well", 30)
        task = asyncio.ensure_future(outcome_of("first", response))
        await asyncio.sleep(0)
        task.cancel()
        await task
        return await asyncio.wait_for(outcome_of("second", outer.echo.remote(response)), 20)

    assert isinstance(asyncio.run(main()).error, RequestCancelledError)


@pytest.mark.parametrize("is_killed", [False, True])
def test_calls_that_wait_for_a_deployment_that_is_deleted_are_told(
    deploy, board, callers, is_killed
):
    app = TROUBLED.options(max_ongoing_requests=1, graceful_shutdown_timeout_s=1).bind()
    handle = deploy(app, f"deleted-{is_killed}").options(idempotent=True)
    names = [f"w{i}" for i in range(5)]
    running = callers.start(
        outcomes_of((n, lambda n=n: handle.remote(board.path, n, 30)) for n in names)
    )
    eventually(lambda: board.count("start") == 1)
    if is_killed:  # the call that ran waits, too, to be repeated
        os.kill(int(board.lines("start")[0][2]), signal.SIGKILL)
        eventually(lambda: serve_grpc.handle_statistics(handle).retries == 1)
    serve.delete(f"deleted-{is_killed}", _blocking=False)
    outcomes = running.result(SETTLE_S)
    documented = (ServeGrpcError, DeploymentUnavailableError)
    assert check(board, outcomes, documented=documented) == NOTHING_WRONG
    waited = [o.error for o in outcomes if not board.count("start", o.name)]
    assert {type(error) for error in waited} == {DeploymentUnavailableError}
    assert len(waited) == 4
    assert [o.kind for o in outcomes].count("unknown") == 1


def test_calls_that_wait_when_serve_is_shut_down_are_told(run_script):
    run_script("serve_gone", env={})
