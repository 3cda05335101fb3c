"""What Serve knows of our calls: counters, access log, ids, queue lengths, autoscaling."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
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


def metric(name, **labels):
    """Sum of the samples with these labels, from the node's Prometheus endpoint."""
    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}").text
    total = 0.0
    for line in text.splitlines():
        if re.match(rf"ray_{name}(_total)?\{{", line) and all(
            f'{key}="{value}"' in line for key, value in labels.items()
        ):
            total += float(line.rsplit(" ", 1)[1])
    return total


# ------------------------------------------------------------ metrics


@pytest.mark.parametrize(
    "name",
    [
        "serve_deployment_request_counter",
        "serve_deployment_processing_latency_ms_count",
        "serve_handle_request_counter",
        "serve_num_router_requests",
    ],
)
def test_requests_are_counted_in_serves_metrics(counted, name):
    before = metric(name, deployment="Counted")
    for _ in range(10):
        counted.remote(1).result(timeout_s=20)
    list(counted.options(method_name="items", stream=True).remote(3))
    eventually(lambda: metric(name, deployment="Counted") >= before + 11, timeout_s=30)


def test_errors_are_counted_with_their_type(counted):
    for _ in range(3):
        with pytest.raises(ValueError, match="a bad value"):
            counted.fail.remote("ValueError").result(timeout_s=20)
    labels = {"deployment": "Counted", "exception_type": "ValueError"}
    eventually(lambda: metric("serve_deployment_error_counter", **labels) == 3, timeout_s=30)


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
    ours, native = (
        access_line(counted, replica, by_reference, method, *args, stream=stream)
        for by_reference in BOTH
    )
    assert len(ours) == 1
    assert ours == native


def test_access_log_has_one_line_for_each_of_many_calls(counted, replica):
    responses = [counted.remote(i) for i in range(200)]
    ids = [r.request_id for r in responses if r.result(timeout_s=20) is not None]
    text = eventually(lambda: ids[-1] in (text := Path(replica["log_file"]).read_text()) and text)
    assert [sum(request_id in line for line in text.splitlines()) for request_id in ids] == [
        1
    ] * 200


def test_cancelled_call_is_logged_as_cancelled(counted, replica, key):
    response = counted.hold.remote(key)
    eventually(lambda: counted.watch.remote(key).result(timeout_s=20)["note"] == "running")
    response.cancel()
    lines = eventually(lambda: [x for x in lines_of(replica, response.request_id) if "CALL" in x])
    assert len(lines) == 1
    assert "CANCELLED" in lines[0]


# ------------------------------------------------------------ ids and context


@pytest.mark.parametrize("by_reference", BOTH)
def test_nested_calls_carry_the_request_id(counted, by_reference):
    response = counted.options(_by_reference=by_reference).requests.remote()
    assert response.result(timeout_s=20) == [response.request_id] * 2


def test_request_ids_of_separate_calls_differ(counted):
    responses = [counted.request.remote() for _ in range(20)]
    seen = [r.result(timeout_s=20)["request_id"] for r in responses]
    assert seen == [r.request_id for r in responses]
    assert len(set(seen)) == 20


def test_request_context_is_that_of_serve(counted):
    ours, native = (
        counted.options(
            _by_reference=by_reference, multiplexed_model_id="model", session_id="session"
        )
        .request.remote()
        .result(timeout_s=20)
        for by_reference in BOTH
    )
    assert ours.pop("request_id") != native.pop("request_id")
    assert ours == native
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
