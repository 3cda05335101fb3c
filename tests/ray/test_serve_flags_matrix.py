"""Every combination of Serve's threading flags, serializers and kinds of call.

A caller replica calls an echo replica; both run with the flags under test.
"""

from __future__ import annotations

import itertools

import pytest

import serve_grpc
from tests.ray.apps.matrix import Caller, Echo

LOOPS = {"router_thread": "1", "callers_loop": "0"}
THREADS = {"user_thread": "1", "one_thread": "0"}
VALUES = {
    "cloudpickle": {"a": (1, 2), "b": {3}},
    "pickle": {"a": (1, 2), "b": {3}},
    "msgpack": {"a": [1, 2.5, None], "b": b"bytes", 3: "int key"},
    "orjson": {"a": [1, 2.5, None], "b": "text"},
    "noop": b"bytes",
}


@pytest.fixture(
    scope="module",
    params=list(itertools.product(LOOPS, THREADS)),
    ids=lambda param: "-".join(param),
)
def caller(request, deploy):
    loop, thread = request.param
    env = {
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": LOOPS[loop],
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": THREADS[thread],
    }
    enabled = [
        serve_grpc.deployment(
            max_ongoing_requests=50,
            graceful_shutdown_wait_loop_s=0.1,
            ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": env}},
        )(cls)
        for cls in (Caller, Echo)
    ]
    handle = deploy(enabled[0].bind(enabled[1].bind()), f"matrix-{loop}-{thread}")
    flags = handle.flags.remote().result(timeout_s=30)
    assert flags == [LOOPS[loop] == "1", THREADS[thread] == "1"]
    return handle


@pytest.mark.parametrize("serializer", VALUES)
def test_unary_calls(caller, serializer):
    value = VALUES[serializer]
    assert caller.unary.remote(serializer, value).result(timeout_s=30) == [value] * 20


@pytest.mark.parametrize("serializer", VALUES)
def test_streams(caller, serializer):
    value = VALUES[serializer]
    assert caller.stream.remote(serializer, value).result(timeout_s=30) == [value] * 5


def test_user_errors_and_cancels(caller):
    assert caller.errors.remote().result(timeout_s=30) == ["KeyError", True]


def test_calls_of_sync_code(caller):
    assert caller.in_thread.remote(7).result(timeout_s=30) == 7
