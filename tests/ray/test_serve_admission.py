"""How many requests a replica runs, which replica gets them, and who has to wait."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from ray import serve
from ray.serve.exceptions import BackPressureError

import serve_grpc
from tests.ray.apps.crowded import Crowd, Crowded
from tests.ray.apps.gated import Board, Gated
from tests.ray.needs import needs_ray
from tests.ray.waiting import eventually, eventually_async

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture(scope="module")
def narrow(deploy):
    """One replica, three at a time."""
    gated = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=3)(Gated)
    return deploy(gated.bind(), "narrow")


@pytest.fixture(scope="module")
def queueing(deploy):
    """One replica, one at a time, two may wait."""
    gated = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=1, max_queued_requests=2)(Gated)
    return deploy(gated.bind(), "queueing")


def test_by_value_calls_never_exceed_max_ongoing_requests(narrow, board):
    responses = [narrow.remote(board.path, f"v{i}") for i in range(20)]
    eventually(lambda: board.count("start") == 3)
    board.release()
    assert [r.result(timeout_s=20) for r in responses] == [f"v{i}" for i in range(20)]
    assert board.most_running == 3
    assert board.count("start") == board.count("end") == 20


def test_both_transports_share_max_ongoing_requests(narrow, board):
    serves = narrow.options(_by_reference=True)
    responses = [
        handle.remote(board.path, f"{i}")
        for i, handle in zip(range(16), itertools.cycle([narrow, serves]), strict=False)
    ]
    eventually(lambda: board.count("start") == 3)
    board.release()
    assert [r.result(timeout_s=30) for r in responses] == [f"{i}" for i in range(16)]
    assert board.most_running == 3


def test_several_callers_share_a_full_replica_and_all_are_served(narrow, board):
    others = [serve_grpc.get_app_handle("narrow").options(_by_reference=False) for _ in range(3)]
    handles = [narrow, *others]
    responses = [h.remote(board.path, f"{i}") for i in range(6) for h in handles]
    eventually(lambda: board.count("start") == 3)
    board.release()
    for response in responses:
        response.result(timeout_s=20)
    assert board.most_running == 3
    assert board.count("start") == 24


def test_queued_calls_run_first_come_first_served(narrow, board):
    blockers = [narrow.remote(board.path, f"b{i}") for i in range(3)]
    eventually(lambda: board.count("start") == 3)
    waiting = [narrow.remote(board.path, f"w{i}") for i in range(9)]
    board.release()
    for response in (*blockers, *waiting):
        response.result(timeout_s=20)
    order = [name for _, name, *_ in board.lines("start") if name.startswith("w")]
    # Three run at a time, so neighbours may change places, and nothing else.
    assert all(abs(order.index(f"w{i}") - i) <= 3 for i in range(9))


def test_a_full_queue_raises_back_pressure_with_its_fields(queueing, board):
    running = queueing.remote(board.path, "running")
    eventually(lambda: board.count("start") == 1)
    waiting = [queueing.remote(board.path, f"w{i}") for i in range(2)]
    for _ in range(3):
        with pytest.raises(BackPressureError) as raised:
            queueing.remote(board.path, "too many").result(timeout_s=20)
    error = raised.value
    assert error.args[:2] == (2, 2)
    assert "max_queued_requests=2" in error.message
    board.release()
    for response in (running, *waiting):
        response.result(timeout_s=20)
    assert board.count("start", "too") == 0
    assert queueing.remote(board.path, "later").result(timeout_s=20) == "later"


@needs_ray("2.58", "BackPressureError has fields for HTTP")
def test_back_pressure_says_what_to_answer_over_http(queueing, board):
    running = [queueing.remote(board.path, f"{i}") for i in range(3)]
    with pytest.raises(BackPressureError) as raised:
        queueing.remote(board.path, "too many").result(timeout_s=20)
    board.release()
    assert (raised.value.status_code, raised.value.retry_after_s) == (503, None)
    for response in running:
        response.result(timeout_s=20)


def test_back_pressure_reaches_async_callers_and_streams(queueing, board):
    async def main():
        running = queueing.remote(board.path, "running")
        await eventually_async(lambda: board.count("start") == 1)
        waiting = [queueing.remote(board.path, f"w{i}") for i in range(2)]
        with pytest.raises(BackPressureError):
            await queueing.remote(board.path, "x")
        with pytest.raises(BackPressureError):
            async for _ in queueing.options(method_name="stream", stream=True).remote(board.path):
                pass
        board.release()
        await asyncio.gather(running, *waiting)

    asyncio.run(main())


def test_calls_made_before_the_deployment_is_up_are_served_when_it_is(deploy, board):
    gated = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=10)(Gated)
    serve._run(gated.bind(), name="late", route_prefix=None, _blocking=False)
    handle = serve_grpc.get_deployment_handle("Gated", "late").options(_by_reference=False)
    board.release()
    try:
        responses = [handle.remote(board.path, f"{i}") for i in range(3)]
        assert [r.result(timeout_s=30) for r in responses] == ["0", "1", "2"]
        assert not responses[0].by_reference
    finally:
        serve.delete("late", _blocking=False)


def test_a_call_wakes_a_deployment_that_is_scaled_to_zero(deploy, board):
    gated = serve_grpc.deployment(
        ray_actor_options=OPTIONS["ray_actor_options"],
        max_ongoing_requests=10,
        autoscaling_config={
            "min_replicas": 0,
            "initial_replicas": 0,
            "max_replicas": 1,
            "upscale_delay_s": 0,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 1,
        },
    )(Gated)
    handle = deploy(gated.bind(), "zero")
    assert serve.status().applications["zero"].deployments["Gated"].replica_states == {}
    board.release()
    response = handle.remote(board.path, "first")
    assert response.result(timeout_s=40) == "first"
    assert not response.by_reference


# ------------------------------------------------------------ many short requests, few slots


@pytest.fixture(scope="module")
def crowds(deploy):
    """Two callers with handles of their own, by value; (first, second, handle of `Crowded`)."""
    crowded = serve_grpc.deployment(**OPTIONS)(Crowded).bind()  # Serve's default: five at once
    crowd = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=10)(Crowd)
    first = deploy(crowd.bind(crowded), "crowd")
    inner = serve_grpc.get_deployment_handle("Crowded", "crowd").options(_by_reference=False)
    return first, deploy(crowd.bind(inner), "second-crowd"), inner


@pytest.mark.parametrize("method", ["at_once", "in_a_turn", "in_a_while", "in_a_thread"])
def test_a_crowd_never_exceeds_max_ongoing_requests(crowds, method):
    calls = 2000
    answers = [crowd.remote(method, calls, 100) for crowd in crowds[:2]]
    serves = crowds[2].options(method_name=method, _by_reference=True)
    by_reference = [serves.remote(number) for number in range(20)]
    for answer in answers:
        results = answer.result(timeout_s=60)
        assert sorted(results) == list(range(calls))
        # First come, first served: nobody is overtaken by more than those on their way.
        assert max(abs(at - number) for at, number in enumerate(results)) < 300
    assert sorted(r.result(timeout_s=60) for r in by_reference) == list(range(20))
    assert crowds[2].most_running.remote().result(timeout_s=20) <= 5


def test_a_crowd_whose_requests_begin_to_take_long_is_served_as_well(crowds):
    crowds[0].remote("at_once", 2000, 100).result(timeout_s=60)
    results = crowds[0].remote("for_long", 15, 15).result(timeout_s=60)
    assert sorted(results) == list(range(15))
    assert crowds[2].most_running.remote().result(timeout_s=20) <= 5
