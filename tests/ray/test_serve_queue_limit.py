"""`max_queued_requests` holds from a handle's first call on, and is judged once, at `remote()`."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest
from ray.serve.exceptions import BackPressureError

import serve_grpc
from tests.ray.apps.gated import Board, Gated
from tests.ray.apps.queued import Burst, answered, fresh
from tests.ray.carriers import CARRIERS, options_over
from tests.ray.waiting import eventually, eventually_async

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}
RUNNING, WAITING, CALLS = 2, 3, 100


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture(scope="module", params=CARRIERS)
def limited(deploy, request):
    """One replica; two calls run, three may wait. Over each carrier."""
    options = options_over(request.param, OPTIONS)
    gated = serve_grpc.deployment(
        **options, max_ongoing_requests=RUNNING, max_queued_requests=WAITING
    )(Gated)
    return deploy(gated.bind(), f"limited-{request.param}")


@pytest.fixture(scope="module")
def upstream(deploy):
    """Whose results are arguments of other calls."""
    gated = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=100)(Gated)
    return deploy(gated.bind(), "upstream")


def burst(handle, board, *others):
    """How many of many calls at once are let in, each kind of handle in turn."""

    async def main():
        handles = (handle, *others)
        calls = [handles[i % len(handles)].remote(board.path, f"{i}") for i in range(CALLS)]
        counting = asyncio.ensure_future(answered(calls))
        await eventually_async(lambda: board.count("start") == RUNNING)
        board.release()
        return await counting

    return asyncio.run(main())


def test_a_handle_that_was_never_used_lets_in_as_many_as_any_other(limited, board):
    assert burst(fresh(limited), board) == RUNNING + WAITING
    assert board.count("start") == RUNNING + WAITING


def test_in_a_thread_as_well(limited, board):
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(burst, fresh(limited), board).result() == RUNNING + WAITING


def test_in_a_fresh_replica_as_well(deploy, limited, board):
    caller = deploy(serve_grpc.deployment(**OPTIONS)(Burst).bind(), "burst")
    counting = caller.remote(limited, board.path, CALLS)
    eventually(lambda: board.count("start") == RUNNING)
    board.release()
    assert counting.result(timeout_s=30) == RUNNING + WAITING


def test_calls_of_both_transports_are_under_one_limit(limited, board):
    unused = fresh(limited)
    let_in = burst(unused, board, unused.options(_by_reference=True))
    assert WAITING <= let_in <= RUNNING + WAITING


def all_running(handle, board, started_before=0):
    """Calls that take all slots, for the replica and for the handle.

    By reference Serve's router counts a call as waiting until the replica's answer that it took the
    call is back, which may be after the handler's first line.
    """
    running = [handle.remote(board.path, f"r{i}") for i in range(RUNNING)]
    eventually(lambda: board.count("start") == started_before + RUNNING)
    if handle.handle_options._by_reference:
        for response in running:
            response._to_object_ref_sync()
    return running


@pytest.mark.parametrize("by_reference", [False, True], ids=["by_value", "by_reference"])
def test_a_call_is_refused_before_its_arguments_are_there(limited, upstream, board, by_reference):
    handle = limited.options(_by_reference=by_reference)
    running = all_running(handle, board)
    waiting = [handle.remote(board.path, f"w{i}") for i in range(WAITING)]
    argument = upstream.options(_by_reference=by_reference).remote(board.path, "argument")
    eventually(lambda: board.count("start", "argument") == 1)
    with pytest.raises(BackPressureError):
        handle.remote(board.path, argument).result(timeout_s=20)
    assert board.count("end", "argument") == 0
    board.release()
    for response in (*running, *waiting, argument):
        response.result(timeout_s=20)


@pytest.mark.parametrize("by_reference", [False, True], ids=["by_value", "by_reference"])
def test_a_call_that_was_let_in_is_not_refused_when_its_arguments_come(
    limited, upstream, board, by_reference
):
    handle = limited.options(_by_reference=by_reference)
    argument = upstream.options(_by_reference=by_reference).remote(board.path, "argument")
    early = handle.remote(board.path, argument)
    eventually(lambda: board.count("start", "argument") == 1)
    running = all_running(handle, board, started_before=1)
    waiting = [handle.remote(board.path, f"w{i}") for i in range(WAITING)]
    with pytest.raises(BackPressureError):  # which shows that the others wait
        handle.remote(board.path, "too many").result(timeout_s=20)
    board.release("argument")
    assert argument.result(timeout_s=20) == "argument"
    board.release()
    for response in (*running, *waiting):
        response.result(timeout_s=20)
    assert early.result(timeout_s=20) == "argument"
