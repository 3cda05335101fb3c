"""What Serve and its tracing tell of a call with a stream as an argument: of all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import serve_grpc
from tests.ray.apps.traced import TRACING, Front, Leaf
from tests.ray.compat.behaviours import OURS, over
from tests.ray.waiting import eventually

PAUSE_S = 0.2
LASTS_S = 3 * PAUSE_S
OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 20,
    "graceful_shutdown_wait_loop_s": 0.1,
    "ray_actor_options": {"num_cpus": 0.01, "runtime_env": {"env_vars": TRACING}},
}
WAYS = ["read", "read_in_thread", "echo"]


class App:
    """Front calls Leaf; one replica of each."""

    def __init__(self, deploy: Callable[..., Any]) -> None:
        enabled = serve_grpc.deployment(**OPTIONS)
        self.front = deploy(enabled(Front).bind(enabled(Leaf).bind()), "inputs-observed")
        self.leaf = over(OURS, serve_grpc.get_deployment_handle("Leaf", "inputs-observed"))
        self.log = Path(self.leaf.log_file.remote().result(timeout_s=30))

    def upload(self, *args: Any) -> tuple[str, str, Any]:
        """Trace, id of the request, and what came of `Front.upload`."""
        trace, request_id, got = self.front.upload.remote(*args).result(timeout_s=30)
        return trace, request_id, got

    def spans(self, trace: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """Of the way to the replica, of the handler, and of each item that was made."""

        def found() -> list[dict[str, Any]]:
            got = [handle.spans.remote() for handle in (self.front, self.leaf)]
            flat = [span for response in got for span in response.result(timeout_s=30)]
            return [span for span in flat if span["trace"] == trace]

        seen = eventually(lambda: spans if len(spans := found()) == 6 else [])
        (front,) = [s for s in seen if s["name"].startswith("replica_handle_request Front")]
        (route,) = [s for s in seen if s["name"].startswith("route_to_replica Leaf")]
        (leaf,) = [s for s in seen if s["name"].startswith("replica_handle_request Leaf")]
        made = [s for s in seen if s["name"] == "made"]
        assert route["parent"] == front["id"]
        assert leaf["parent"] == route["id"]
        assert [s["parent"] for s in made] == [front["id"]] * 3
        return route, leaf, made

    def access_line(self, request_id: str) -> tuple[str, float]:
        """Status and milliseconds of the only line of a request."""

        def lines() -> list[str]:
            return [line for line in self.log.read_text().splitlines() if request_id in line]

        (line,) = eventually(lambda: [line for line in lines() if "CALL" in line])
        found = re.search(r"(OK|ERROR|CANCELLED) ([\d.]+)ms", line)
        assert found is not None, line
        return found[1], float(found[2])


@pytest.fixture(scope="module")
def app(deploy: Callable[..., Any]) -> App:
    return App(deploy)


@pytest.mark.parametrize("method", WAYS)
def test_spans_and_the_access_log_cover_the_whole_call(app, method):
    trace, request_id, got = app.upload(method, PAUSE_S)
    assert got == [0, 1, 2]
    route, leaf, _ = app.spans(trace)
    assert route["lasted_s"] >= LASTS_S * 0.9
    assert leaf["lasted_s"] >= LASTS_S * 0.9
    assert (route["errors"], leaf["errors"]) == ([], [])
    status, latency_ms = app.access_line(request_id)
    assert status == "OK"
    assert latency_ms >= LASTS_S * 900


@pytest.mark.parametrize("method", WAYS)
def test_a_generator_that_fails_fails_the_call_unless_the_handler_catches_it(app, method):
    trace, request_id, got = app.upload(method, PAUSE_S, "fails")
    assert got == "RayTaskError(RequestStreamError)"
    route, leaf, _ = app.spans(trace)
    assert (route["errors"], leaf["errors"]) == ([], ["serve_grpc.errors.RequestStreamError"])
    status, latency_ms = app.access_line(request_id)
    assert status == "ERROR"
    assert latency_ms >= LASTS_S * 900


def test_a_generator_that_fails_leaves_no_trace_where_the_handler_catches_it(app):
    trace, request_id, got = app.upload("read_what_comes", PAUSE_S, "fails")
    assert got == [0, 1, 2]
    route, leaf, _ = app.spans(trace)
    assert (route["errors"], leaf["errors"]) == ([], [])
    assert app.access_line(request_id)[0] == "OK"


def test_a_call_that_is_given_up_in_the_midst_of_its_stream_says_so(app):
    trace, request_id, got = app.upload("read", PAUSE_S, "cancels")
    assert got == "RequestCancelledError"
    route, leaf, _ = app.spans(trace)
    assert route["errors"] == leaf["errors"] == ["asyncio.exceptions.CancelledError"]
    status, latency_ms = app.access_line(request_id)
    assert status == "CANCELLED"
    assert latency_ms >= LASTS_S * 900
