"""Calls that have to wait, and what comes of it: refusals, cold starts, more and fewer replicas."""

from __future__ import annotations

import time

import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

import serve_grpc
from tests.ray.apps.gated import Board, Gated
from tests.ray.apps.waiting import Broken, CallerProcess, Relay
from tests.ray.compat.behaviours import TRANSPORTS, behaviour
from tests.ray.waiting import eventually

SECTION = "Waiting and scaling"
OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}
PAUSE_S = 4.0
pytestmark = pytest.mark.timeout(300)  # the first test of scaling waits for twelve replicas


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture(scope="module")
def narrow(deploy):
    """One request at a time, two may wait; callers pause for long when it is full."""
    pauses = RequestRouterConfig(initial_backoff_s=PAUSE_S, max_backoff_s=PAUSE_S)
    gated = serve_grpc.deployment(
        **OPTIONS,
        max_ongoing_requests=1,
        max_queued_requests=2,
        backpressure_config={"status_code": 429, "retry_after_s": 7},
        request_router_config=pauses,
    )(Gated)
    relay = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=10)(Relay)
    deploy(relay.bind(gated.bind()), "narrow-wait")
    return serve_grpc.get_deployment_handle("Gated", "narrow-wait")


def refused(response, *, timeout_s):
    """The BackPressureError that it has ended with, None if it goes on."""
    try:
        response.result(timeout_s=timeout_s)
    except BackPressureError as error:
        return getattr(error, "cause", error)
    except TimeoutError:
        return None
    raise AssertionError("it ran")


def refusal_when_full(call, board):
    """(accepted, error): a call that runs and two that wait, and what the next one raises."""
    accepted = [call("running")]
    eventually(lambda: board.count("start") == 1)

    def refusal():
        # By reference the running call counts as waiting for an instant more, so that one which
        # had to wait may be refused; another takes its place.
        response = call("waiting")
        error = refused(response, timeout_s=0.5)
        if error is None:
            accepted.append(response)
            # On a busy machine a refusal may come later than it was waited for.
            accepted[1:] = [r for r in accepted[1:] if refused(r, timeout_s=0) is None]
            assert len(accepted) <= 3
            return None
        return error if len(accepted) == 3 else None

    return accepted, eventually(refusal)


# ------------------------------------------------------------ refusals


@behaviour(
    SECTION,
    "Beyond `max_queued_requests` calls fail at once with a BackPressureError and its fields",
)
def test_full_queue(transport, narrow, board):
    handle = transport.over(narrow)
    accepted, error = refusal_when_full(lambda name: handle.remote(board.path, name), board)
    assert error.args == (2, 2, 429, 7)
    assert (error.status_code, error.retry_after_s) == (429, 7)
    assert "max_queued_requests=2" in error.message
    board.release()
    for response in accepted:
        response.result(timeout_s=30)
    assert board.count("start") == 3


@behaviour(SECTION, "A BackPressureError of a call that a handler makes arrives with its fields")
def test_full_queue_of_a_nested_call(transport, narrow, board):
    relay = transport.over(serve_grpc.get_app_handle("narrow-wait"))
    accepted, error = refusal_when_full(
        lambda name: relay.remote(transport.name, board.path, name), board
    )
    assert error.args == (2, 2, 429, 7)
    assert "max_queued_requests=2" in error.message
    board.release()
    for response in accepted:
        response.result(timeout_s=30)
    assert board.count("start") == 3


@behaviour(
    SECTION,
    "A call that waits for a full replica starts when a slot is free, without waiting out a pause "
    "of `RAY_SERVE_ROUTER_RETRY_*`",
    by_reference="looks again when the pause is over, 0.5 s at most by default",
    serves_grpc="looks again when the pause is over, 0.5 s at most by default",
    raises=AssertionError,
)
def test_no_pause_when_a_slot_is_free(transport, narrow, board):
    handle = transport.over(narrow)
    # A handle that went through pickle has a router of its own, which must ask the replica.
    other = ray.cloudpickle.loads(ray.cloudpickle.dumps(handle))
    other.pid.remote().result(timeout_s=30)
    running = handle.remote(board.path, "running")
    eventually(lambda: board.count("start") == 1)
    waiting = other.remote(board.path, "waiting")
    time.sleep(PAUSE_S / 8)  # to be turned away, of which no transport tells
    board.release()
    released_s = time.monotonic()
    try:
        eventually(lambda: board.count("start", "waiting") == 1, timeout_s=30)
        waited_s = time.monotonic() - released_s
    finally:
        for response in (running, waiting):
            response.result(timeout_s=30)
    assert waited_s < PAUSE_S / 3


@behaviour(SECTION, "Calls of a deployment that failed to deploy raise DeploymentUnavailableError")
def test_unavailable_deployment(transport, broken):
    handle = transport.over(serve_grpc.get_deployment_handle("Broken", "broken"))

    def raised():
        with pytest.raises((DeploymentUnavailableError, TimeoutError)) as info:
            handle.remote().result(timeout_s=1)
        return info.type is DeploymentUnavailableError

    eventually(raised)


@pytest.fixture(scope="module")
def broken(deploy):
    app = serve_grpc.deployment(**OPTIONS, max_constructor_retry_count=1)(Broken).bind()
    serve._run(app, name="broken", route_prefix=None, _blocking=False)
    eventually(
        lambda: serve.status().applications["broken"].status == "DEPLOY_FAILED", timeout_s=60
    )
    yield
    serve.delete("broken", _blocking=False)


# ------------------------------------------------------------ many handles


@pytest.fixture(scope="module")
def callers(serve_instance):
    """A process that reports running requests from its handles, and one that does not."""
    flags = {
        "handles": {},
        "replicas": {
            "RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE": "0",
            "RAY_SERVE_MAX_CACHED_HANDLES": "3",
        },
    }
    caller = ray.remote(num_cpus=0.01)(CallerProcess)
    actors = {
        name: caller.options(runtime_env={"env_vars": env}).remote() for name, env in flags.items()
    }
    yield actors
    for actor in actors.values():
        ray.kill(actor)


NAMES = ("Gated", "many-handles")


@pytest.fixture(scope="module")
def many(deploy):
    """A deployment whose handles report to the autoscaler five times a second."""
    config = {"min_replicas": 1, "max_replicas": 1, "metrics_interval_s": 0.2}
    gated = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=300, autoscaling_config=config)(
        Gated
    )
    deploy(gated.bind(), NAMES[1])


@behaviour(SECTION, "200 handles of a deployment cost the controller no more RPCs than one")
def test_many_handles(transport, many, callers):
    count = callers["handles"].rpcs_to_controller.remote
    one, many_handles = (
        ray.get(count(transport.name, NAMES, handles, 1.0), timeout=90) for handles in (1, 200)
    )
    assert many_handles < one + 20


@behaviour(
    SECTION,
    "A handle that fell out of Serve's cache (`RAY_SERVE_MAX_CACHED_HANDLES`) goes on working",
)
def test_evicted_handles(transport, many, callers):
    calls = callers["replicas"].calls_of_evicted_handle.remote(transport.name, NAMES)
    assert ray.get(calls, timeout=90) == [True, True]


# ------------------------------------------------------------ scaling


def running(name):
    states = serve.status().applications[name].deployments["Gated"].replica_states
    return states.get("RUNNING", 0) if set(states) <= {"RUNNING"} else None


def comes_true(condition):
    """Whether it does; a transport that fails must not fail the others."""
    try:
        return bool(eventually(condition, timeout_s=90))
    except AssertionError:
        return False


@pytest.fixture(scope="module")
def scaling(callers, tmp_path_factory):
    """What became of a deployment for each way of reporting and each transport.

    All of them at once, because replicas take their time to start and to stop.
    """
    names = {
        (mode, transport): f"scaling-{mode}-{number}"
        for mode in callers
        for number, transport in enumerate(TRANSPORTS)
    }
    seen = {key: {} for key in names}
    boards = {key: Board(tmp_path_factory.mktemp(name)) for key, name in names.items()}
    try:
        for (mode, transport), name in names.items():
            start(callers[mode], mode, transport, name, boards[mode, transport])
        for key, name in names.items():
            seen[key]["up"] = comes_true(lambda name=name: running(name) == 2)
        for (mode, transport), name in names.items():
            boards[mode, transport].release()
            seen[mode, transport]["results"] = ray.get(
                callers[mode].finish.remote(name), timeout=90
            )
        for key, name in names.items():
            seen[key]["down"] = comes_true(lambda name=name: running(name) == 0)
    finally:
        for name in names.values():
            serve.delete(name, _blocking=False)
    return seen


def start(caller, mode, transport, name, board):
    """Deploy with no replica at all, and make six calls."""
    flag = {"RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE": "0"}
    environment = {} if mode == "handles" else {"runtime_env": {"env_vars": flag}}
    gated = serve_grpc.deployment(
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=3,
        ray_actor_options={"num_cpus": 0.01, **environment},
        max_ongoing_requests=20,
        autoscaling_config={
            "min_replicas": 0,
            "initial_replicas": 0,
            "max_replicas": 2,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0.5,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 0.5,
        },
    )(Gated)
    serve._run(gated.bind(), name=name, route_prefix=None, _blocking=False)
    handle = serve_grpc.get_deployment_handle("Gated", name, _check_exists=False)
    ray.get(caller.start.remote(name, transport, handle, board.path, 6), timeout=90)


MODES = pytest.mark.parametrize("mode", ["handles", "replicas"])


@MODES
@behaviour(SECTION, "Calls wake a deployment that is scaled to zero, and are all answered")
def test_cold_start(transport, scaling, mode):
    assert scaling[mode, transport.name]["results"] == [f"{i}" for i in range(6)]


@MODES
@behaviour(
    SECTION,
    "Traffic makes a deployment grow, reported by handles or by replicas "
    "(`RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE`)",
)
def test_scaling_up(transport, scaling, mode):
    assert scaling[mode, transport.name]["up"]


@MODES
@behaviour(SECTION, "Without traffic the deployment shrinks again, to zero")
def test_scaling_down(transport, scaling, mode):
    assert scaling[mode, transport.name]["down"]
