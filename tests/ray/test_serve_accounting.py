"""What Serve knows of our calls: access log, request context, queue lengths, autoscaling.

What holds for every transport is in compat/test_compat_metrics.py.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import ray
from ray import serve

import serve_grpc
from tests.ray.apps.bench import OPTIONS, Workbench
from tests.ray.waiting import eventually

BOTH = (False, True)


@pytest.fixture(scope="module")
def counted(deploy):
    """A deployment that no other file calls."""
    enabled = serve_grpc.deployment(**OPTIONS)(Workbench)
    app = enabled.options(name="Counted").bind(enabled.options(name="CountedInner").bind())
    return deploy(app, "counted")


@pytest.fixture(scope="module")
def replica(counted):
    return counted.replica.remote().result(timeout_s=20)


# ------------------------------------------------------------ access log


def lines_of(replica, request_id):
    text = Path(replica["log_file"]).read_text()
    return [line for line in text.splitlines() if request_id in line]


def shape(line, request_id):
    """The line with everything that differs between two calls taken out."""
    line = line.replace(request_id, "ID")
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", "TIME", line)
    return re.sub(r"[\d.]+ms", "N ms", line)


def access_line(counted, replica, by_reference, method, *args, stream=False):
    handle = counted.options(method_name=method, stream=stream, _by_reference=by_reference)
    response = handle.remote(*args)
    try:
        list(response) if stream else response.result(timeout_s=20)
    except ValueError:
        pass  # the test asks for it
    request_id = response.request_id
    lines = eventually(lambda: [x for x in lines_of(replica, request_id) if "CALL" in x])
    return [shape(line, request_id) for line in lines]


@pytest.mark.parametrize(
    ("method", "args", "stream"),
    [
        ("__call__", (1,), False),
        ("pid", (), False),
        ("fail", ("ValueError",), False),
        ("items", (3,), True),
        ("items_in_thread", (3,), True),
    ],
    ids=["call", "method", "error", "stream", "thread_stream"],
)
def test_access_log_has_the_line_that_serve_writes(counted, replica, method, args, stream):
    ours, serves = (
        access_line(counted, replica, by_reference, method, *args, stream=stream)
        for by_reference in BOTH
    )
    assert len(ours) == 1
    assert ours == serves


def test_access_log_has_one_line_for_each_of_many_calls(counted, replica):
    responses = [counted.remote(i) for i in range(200)]
    ids = [r.request_id for r in responses if r.result(timeout_s=20) is not None]
    text = eventually(lambda: ids[-1] in (text := Path(replica["log_file"]).read_text()) and text)
    assert [sum(request_id in line for line in text.splitlines()) for request_id in ids] == [
        1
    ] * 200


# ------------------------------------------------------------ ids and context


def test_request_context_is_that_of_serve(counted):
    ours, serves = (
        counted.options(
            _by_reference=by_reference, multiplexed_model_id="model", session_id="session"
        )
        .request.remote()
        .result(timeout_s=20)
        for by_reference in BOTH
    )
    assert ours.pop("request_id") != serves.pop("request_id")
    assert ours == serves
    assert (ours["model_id"], ours["session_id"]) == ("model", "session")
    assert (ours["app_name"], ours["is_http"]) == ("counted", False)


# ------------------------------------------------------------ load and autoscaling


def test_ongoing_requests_are_those_that_serve_counts(counted, replica, key):
    actor = next(
        ray.get_actor(a["name"], namespace=a["namespace"])
        for a in ray.util.list_named_actors(all_namespaces=True)
        if replica["replica_id"] in a["name"]
    )

    def ongoing():
        return ray.get(actor.get_num_ongoing_requests.remote(), timeout=20)

    eventually(lambda: ongoing() == 0)
    held = [counted.hold.remote(key) for _ in range(5)]
    held += [counted.options(_by_reference=True).hold.remote(key) for _ in range(2)]
    eventually(lambda: ongoing() == 7)
    counted.release.remote(key).result(timeout_s=20)
    for response in held:
        response.result(timeout_s=20)
    eventually(lambda: ongoing() == 0)


def test_our_traffic_makes_a_deployment_scale_up(deploy, key):
    options = {name: value for name, value in OPTIONS.items() if name != "max_ongoing_requests"}
    enabled = serve_grpc.deployment(
        **options,
        max_ongoing_requests=10,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 2,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": 60,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 0.5,
        },
    )(Workbench)
    handle = deploy(enabled.bind(), "scaling")

    def running():
        state = serve.status().applications["scaling"].deployments["Workbench"].replica_states
        return state.get("RUNNING", 0)

    assert running() == 1
    held = [handle.hold.remote(key) for _ in range(6)]
    eventually(lambda: running() == 2, timeout_s=40)
    for response in held:
        response.cancel()
    # The new replica gets its share.
    deadline_s = time.monotonic() + 20
    pids = set()
    while len(pids) < 2 and time.monotonic() < deadline_s:
        pids |= {r.result(timeout_s=20) for r in [handle.pid.remote() for _ in range(20)]}
    assert len(pids) == 2
