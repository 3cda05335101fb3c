"""What Ray Serve tells of calls: metrics, the access log, request ids; each call counted once.

Each transport has an application of its own and one round of traffic, whose numbers the tests read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.ray.apps.gated import Board
from tests.ray.apps.metered import MAX_ONGOING_REQUESTS, metered_app
from tests.ray.compat.behaviours import behaviour
from tests.ray.prometheus import Scrape, scrape
from tests.ray.waiting import eventually

pytestmark = pytest.mark.timeout(300)  # the first test of a transport waits for its whole round

PATIENCE_S = 90
ECHOES, CHAINED, STREAMS, ERRORS = 12, 2, 3, 4
SUCCESSES = ECHOES + CHAINED + STREAMS
HELD = MAX_ONGOING_REQUESTS + 2


class Round(NamedTuple):
    """The traffic of one transport.

    Attributes:
        handle: Over the transport.
        deployment: Its name, which nobody else calls.
        after: The metrics when every call was over: `SUCCESSES` and `ERRORS`.
    """

    handle: Any
    deployment: str
    after: Scrape

    def total(self, name: str, **labels: str) -> float:
        """One metric of the deployment after the traffic."""
        return self.after.total(name, deployment=self.deployment, **labels)


@pytest.fixture(scope="module")
def rounds() -> dict[str, Round]:
    """By transport."""
    return {}


@pytest.fixture
def traffic(transport, deploy, rounds) -> Round:
    if transport.name not in rounds:
        name = "Metered" + "".join(c for c in transport.name.title() if c.isalpha())
        handle = transport.over(deploy(metered_app(transport.name, name), name.lower()))
        rounds[transport.name] = Round(handle, name, make_traffic(handle, name))
    return rounds[transport.name]


def make_traffic(handle: Any, deployment: str) -> Scrape:
    for number in range(ECHOES):
        assert handle.echo.remote(number).result(timeout_s=PATIENCE_S) == number
    assert handle.echo.remote(handle.echo.remote("a")).result(timeout_s=PATIENCE_S) == "a"
    for _ in range(STREAMS):
        stream = handle.options(method_name="items", stream=True).remote(5)
        assert list(stream) == [0, 1, 2, 3, 4]
    for _ in range(ERRORS):
        with pytest.raises(ValueError, match="a bad value"):
            handle.fail.remote().result(timeout_s=PATIENCE_S)
    # Every process tells its numbers in its own time: look again until nothing changes any more.
    expected = SUCCESSES + ERRORS

    def told() -> Scrape | None:
        now = scrape()
        counted = [now.total(name, deployment=deployment) for name in COUNTED_FOR_EACH_CALL]
        return now if all(number >= expected for number in counted) else None

    eventually(told, timeout_s=PATIENCE_S)
    handle.log_file.remote().result(timeout_s=PATIENCE_S)
    expected += 1  # had a call been counted twice, that would be told together with this one
    return eventually(told, timeout_s=PATIENCE_S)


COUNTED_FOR_EACH_CALL = (
    "serve_deployment_processing_latency_ms_count",
    "serve_handle_request_counter",
    "serve_num_router_requests",
    "serve_request_router_fulfillment_time_ms_count",
    "serve_router_args_resolution_latency_ms_count",
)


# ------------------------------------------------------------ metrics


@behaviour("Observability", "Each answered call is counted once in the replica's request counter")
def test_requests_are_counted(traffic):
    assert traffic.total("serve_deployment_request_counter") == SUCCESSES + 1


@behaviour("Observability", "Each failed call is counted once, with the type of its exception")
def test_errors_are_counted(traffic):
    name = "serve_deployment_error_counter"
    assert traffic.total(name) == traffic.total(name, exception_type="ValueError") == ERRORS


@behaviour("Observability", "The replica's latency histogram has one value for each call")
def test_latencies_are_observed(traffic):
    name = "serve_deployment_processing_latency_ms"
    assert traffic.total(f"{name}_count") == SUCCESSES + ERRORS + 1
    assert traffic.total(f"{name}_bucket", le="+Inf") == SUCCESSES + ERRORS + 1
    assert traffic.total(f"{name}_sum") > 0


@behaviour("Observability", "Each call is counted once as made on the handle and once as routed")
def test_handle_and_router_count(traffic):
    assert traffic.total("serve_handle_request_counter") == SUCCESSES + ERRORS + 1
    assert traffic.total("serve_num_router_requests") == SUCCESSES + ERRORS + 1


@behaviour(
    "Observability", "The router's histogram of waits for a replica has one value for each call"
)
def test_waits_are_observed(traffic):
    name = "serve_request_router_fulfillment_time_ms"
    assert traffic.total(f"{name}_count") == SUCCESSES + ERRORS + 1


@behaviour(
    "Observability", "The time that a call waits for its arguments is observed once for each call"
)
def test_resolutions_are_observed(traffic):
    name = "serve_router_args_resolution_latency_ms"
    assert traffic.total(f"{name}_count") == SUCCESSES + ERRORS + 1


@pytest.fixture
def full(traffic, tmp_path) -> Iterator[Callable[[], None]]:
    """The replica is full and two calls wait, until this is called."""
    board = Board(tmp_path)
    held = [traffic.handle.remote(board.path) for _ in range(HELD)]

    def end() -> None:
        board.release()
        for response in held:
            response.result(timeout_s=PATIENCE_S)
        assert board.most_running == MAX_ONGOING_REQUESTS

    yield end
    end()


@behaviour(
    "Observability", "Gauges show running and queued calls, on the handle's side and the replica's"
)
def test_gauges_follow_the_calls(traffic, full):
    def gauges() -> list[float]:
        now = scrape()
        return [
            now.total(name, deployment=traffic.deployment)
            for name in (
                "serve_num_ongoing_requests_at_replicas",
                "serve_replica_processing_queries",
                "serve_deployment_queued_queries",
            )
        ]

    most = [MAX_ONGOING_REQUESTS, MAX_ONGOING_REQUESTS, HELD - MAX_ONGOING_REQUESTS]
    eventually(lambda: gauges() == most, timeout_s=PATIENCE_S)
    full()
    eventually(lambda: gauges() == [0, 0, 0], timeout_s=PATIENCE_S)


@behaviour(
    "Observability",
    "Gauges of the router show each replica's load, and that routing waits for a full replica",
)
def test_gauges_of_the_request_router(traffic, full):
    def gauges() -> tuple[float, bool, bool]:
        now = scrape()
        loads = now.values("serve_request_router_queue_len", deployment=traffic.deployment)
        tasks, in_backoff = (
            now.total(f"serve_num_scheduling_tasks{end}", deployment=traffic.deployment)
            for end in ("", "_in_backoff")
        )
        return max(loads, default=0), tasks > 0, in_backoff > 0

    eventually(lambda: gauges() == (MAX_ONGOING_REQUESTS, True, True), timeout_s=PATIENCE_S)
    full()
    # Of the loads Serve's own router may keep an older value: it tells each at most every 0.1 s.
    eventually(lambda: gauges()[1:] == (False, False), timeout_s=PATIENCE_S)


# ------------------------------------------------------------ access log and ids


def lines_of(log_file: str, request_id: str) -> list[str]:
    return [line for line in Path(log_file).read_text().splitlines() if request_id in line]


@behaviour(
    "Observability",
    "The access log has one line for each call: method, status, latency, request id",
)
@pytest.mark.parametrize(
    ("method", "args", "status"),
    [("echo", (1,), "OK"), ("items", (3,), "OK"), ("fail", (), "ERROR")],
)
def test_access_log_has_a_line_for_each_call(traffic, method, args, status):
    log_file = traffic.handle.log_file.remote().result(timeout_s=PATIENCE_S)
    is_stream = method == "items"
    response = traffic.handle.options(method_name=method, stream=is_stream).remote(*args)
    try:
        list(response) if is_stream else response.result(timeout_s=PATIENCE_S)
    except ValueError:
        assert status == "ERROR"
    pattern = rf"{response.request_id} -- CALL {method} {status} [\d.]+ms"
    eventually(lambda: any(re.search(pattern, x) for x in lines_of(log_file, response.request_id)))
    lines = [line for line in lines_of(log_file, response.request_id) if " CALL " in line]
    assert len(lines) == 1


@behaviour("Observability", "A cancelled call is in the access log as cancelled")
def test_access_log_tells_of_cancelled_calls(traffic, tmp_path):
    log_file = traffic.handle.log_file.remote().result(timeout_s=PATIENCE_S)
    board = Board(tmp_path)
    response = traffic.handle.remote(board.path)
    eventually(lambda: board.count("start") == 1)
    response.cancel()
    eventually(lambda: board.count("cancelled") == 1)
    pattern = rf"{response.request_id} -- CALL \S+ CANCELLED"
    eventually(lambda: any(re.search(pattern, x) for x in lines_of(log_file, response.request_id)))


@behaviour(
    "Observability", "Nested calls carry the request id of the first call, also in the users' logs"
)
def test_nested_calls_carry_the_request_id(traffic):
    log_file = traffic.handle.log_file.remote().result(timeout_s=PATIENCE_S)
    response = traffic.handle.request_ids.remote(1)
    assert response.result(timeout_s=PATIENCE_S) == [response.request_id] * 2
    own = f"{response.request_id} -- the user says 1"
    eventually(lambda: any(own in line for line in lines_of(log_file, response.request_id)))


@behaviour(
    "Observability",
    "Calls that are not nested have request ids of their own",
)
def test_separate_calls_have_ids_of_their_own(traffic):
    responses = [traffic.handle.request_ids.remote(0) for _ in range(10)]
    seen = [response.result(timeout_s=PATIENCE_S)[0] for response in responses]
    assert seen == [response.request_id for response in responses]
    assert len(set(seen)) == 10
