"""Several replicas: balance, death, retry, graceful shutdown."""

from __future__ import annotations

import os
import signal

import pytest
from ray import serve

import serve_grpc
from serve_grpc.errors import ReplicaDiedError
from tests.ray.apps.gated import Board, Gated
from tests.ray.waiting import eventually

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 20,
    "health_check_period_s": 0.5,
}
GATED = serve_grpc.deployment(**OPTIONS, num_replicas=2, max_ongoing_requests=20)(Gated)


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture(scope="module")
def pair(deploy):
    return deploy(GATED.bind(), "pair")


def pids(handle):
    """The replicas that answer now."""
    return {r.result(timeout_s=20) for r in [handle.pid.remote() for _ in range(40)]}


def test_load_is_shared_between_replicas(pair, board):
    responses = [pair.remote(board.path, f"{i}") for i in range(30)]
    eventually(lambda: board.count("start") == 30)
    by_pid = [pid for _, _, pid, _ in board.lines("start")]
    assert len(set(by_pid)) == 2
    assert min(by_pid.count(pid) for pid in set(by_pid)) >= 8
    board.release()
    for response in responses:
        response.result(timeout_s=20)


def test_every_call_settles_while_a_replica_dies_under_load(pair):
    victim = sorted(eventually(lambda: len(p := pids(pair)) == 2 and p, timeout_s=30))[0]
    responses = [pair.pid.remote() for _ in range(300)]
    os.kill(victim, signal.SIGKILL)
    responses += [pair.pid.remote() for _ in range(300)]
    errors = []
    for response in responses:
        try:
            response.result(timeout_s=20)
        except ReplicaDiedError as error:
            errors.append(error)
    assert all(error.may_have_executed for error in errors)
    assert len(errors) < 300
    assert pair.pid.remote().result(timeout_s=20) != victim


def test_stream_of_a_killed_replica_ends_with_an_error_after_its_items(pair, board):
    eventually(lambda: len(pids(pair)) == 2, timeout_s=40)
    stream = pair.options(method_name="stream", stream=True, idempotent=True).remote(board.path)
    assert next(stream) == 1
    eventually(lambda: board.count("start") == 1)
    os.kill(int(board.lines("start")[0][2]), signal.SIGKILL)
    with pytest.raises(ReplicaDiedError):
        next(stream)
    assert board.count("start") == 1  # an item was delivered, so it is not repeated


def test_redeploy_waits_for_a_running_call_and_new_calls_go_to_the_new_replica(deploy, board):
    gated = GATED.options(num_replicas=1)
    handle = deploy(gated.bind(), "renewed")
    old_pid = handle.pid.remote().result(timeout_s=20)
    running = handle.remote(board.path, "running")
    eventually(lambda: board.count("start") == 1)
    serve._run(gated.bind(inner=None), name="renewed", route_prefix=None, _blocking=False)
    # Served by someone else while the old replica finishes, or after it did.
    responses = []

    def is_renewed():
        responses.append(handle.options(timeout_s=20).pid.remote())
        try:
            return responses[-1].result(timeout_s=1) != old_pid
        except TimeoutError:
            board.release()
            return False

    eventually(is_renewed, timeout_s=40)
    board.release()
    assert running.result(timeout_s=20) == "running"
    for response in responses:
        response.result(timeout_s=20)
