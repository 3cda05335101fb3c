"""Rows 1, 2 and 12: replicas that are killed with calls and streams on them, one or all."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest
from ray.serve.exceptions import RayServeException

import serve_grpc
from serve_grpc.errors import ReplicaDiedError, ServeGrpcError
from tests.faults.calls import SETTLE_S, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.limits import allowed
from tests.faults.load import arriving
from tests.faults.replicas import pids_of, wait_for_replicas
from tests.ray.apps.troubled import ALL, DIES, TROUBLED, give_mood
from tests.ray.waiting import eventually

IN_FLIGHT = 510  # all slots of `three`, so that no other call starts until it is killed
WAITING = 90
DOCUMENTED = (ServeGrpcError, RayServeException)
KILLED = "SIGKILL of 1 of 3 replicas, 510 calls in flight and 90 that wait"


def calls_on(board, pid):
    """Names of those that started there."""
    return {line[1] for line in board.lines("start") if int(line[2]) == pid}


def kill_one(board):
    """Returns the process, the calls that it had started, and when."""
    victim = int(board.lines("start")[0][2])
    lost = calls_on(board, victim)
    os.kill(victim, signal.SIGKILL)
    return victim, lost, time.monotonic()


def test_killed_replica_fails_what_it_ran_and_nothing_else(three, board, callers, measured):
    names = [f"k{i}" for i in range(IN_FLIGHT + WAITING)]
    running = callers.start(
        outcomes_of((name, lambda name=name: three.remote(board.path, name, 5)) for name in names)
    )
    eventually(lambda: board.count("start") >= IN_FLIGHT, timeout_s=30)
    victim, lost, killed_s = kill_one(board)
    outcomes = running.result(SETTLE_S)
    failed = {o.name: o for o in outcomes if o.kind != "ok"}
    settle_s = max(o.ended_s for o in failed.values()) - killed_s
    wrong = check(board, outcomes)
    measured(1, KILLED, "until the last lost call has its error", "≤ 1 s", f"{settle_s:.2f} s")
    measured(1, KILLED, "calls hung", "0", len(wrong.hung))
    measured(1, KILLED, "calls started twice", "0", len(wrong.duplicate))
    measured(
        1, KILLED, "calls failed that the replica had not started", "0", len(failed.keys() - lost)
    )
    assert wrong == NOTHING_WRONG
    assert failed.keys() == lost
    assert {type(o.error) for o in failed.values()} == {ReplicaDiedError}
    assert {o.kind for o in failed.values()} == {"unknown"}
    assert all(o.error.replica_id and o.error.request_id for o in failed.values())
    assert settle_s <= allowed(1)
    assert victim not in pids_of(three)


def test_idempotent_calls_of_a_killed_replica_are_repeated(three, board, callers, measured):
    handle = three.options(idempotent=True)
    earlier = callers.start(outcomes_of((f"{i}", handle.pid.remote) for i in range(500)))
    earlier.result(SETTLE_S)  # calls earn the budget that repeats are paid from
    names = [f"i{i}" for i in range(240)]
    running = callers.start(
        outcomes_of((name, lambda name=name: handle.remote(board.path, name, 2)) for name in names)
    )
    eventually(lambda: board.count("start") == len(names), timeout_s=30)
    _, lost, killed_s = kill_one(board)
    eventually(lambda: board.count("start") == len(names) + len(lost), timeout_s=20)
    repeated_s = time.monotonic() - killed_s
    outcomes = running.result(SETTLE_S)
    wrong = check(board, outcomes, may_repeat=True)
    failed = [o for o in outcomes if o.kind != "ok"]
    fault = "the same, idempotent=True, 240 in flight"
    measured(1, fault, "calls failed", "0", len(failed))
    measured(1, fault, "until all lost calls run elsewhere", "≤ 1 s", f"{repeated_s:.2f} s")
    starts = Counter(line[1] for line in board.lines("start"))
    assert wrong == NOTHING_WRONG
    assert failed == []
    assert {name for name, number in starts.items() if number == 2} == lost
    assert max(starts.values()) == 2
    assert repeated_s <= allowed(1)


def test_streams_of_a_killed_replica_end_with_an_error(three, board, callers, measured):
    streams, items = 100, 60
    handle = three.options(method_name="stream", stream=True)
    names = [f"s{i}" for i in range(streams)]
    running = callers.start(
        outcomes_of(
            (name, lambda name=name: handle.remote(board.path, name, items, 0.03)) for name in names
        )
    )
    eventually(lambda: board.count("start") == streams, timeout_s=30)
    _, lost, killed_s = kill_one(board)
    outcomes = running.result(SETTLE_S)
    failed = [o for o in outcomes if o.kind != "ok"]
    wrong = check(board, outcomes, items=items)
    fault = "SIGKILL of 1 of 3 replicas during 100 streams"
    truncated = [o for o in outcomes if o.kind == "ok" and len(o.value) != items]
    settle_s = max(o.ended_s for o in failed) - killed_s
    measured(2, fault, "streams cut short that look complete", "0", len(truncated))
    measured(2, fault, "streams with items out of order", "0", len(wrong.misdelivered))
    measured(2, fault, "until the last cut stream has its error", "≤ 1 s", f"{settle_s:.2f} s")
    assert wrong == NOTHING_WRONG
    assert {o.name for o in failed} == lost
    assert all(o.kind == "unknown" for o in failed)
    assert any(o.value for o in failed)  # they had begun
    assert settle_s <= allowed(1)


@pytest.mark.long
def test_retries_stay_within_their_budget_when_every_replica_fails(
    deploy, board, callers, measured
):
    """Calls kill their replica, and those that take its place."""
    app = TROUBLED.options(num_replicas=3, max_ongoing_requests=100).bind()
    began_s = time.monotonic()
    handle = deploy(app, "dying").options(idempotent=True, timeout_s=10)
    wait_for_replicas(handle, 3)
    give_mood(board, DIES, ALL)

    def sent():
        statistics = serve_grpc.handle_statistics(handle)
        return statistics.requests_sent - statistics.rejections

    before = sent()
    with arriving(
        callers, lambda name: handle.moody.remote(board.path, name, 0.2), per_s=40
    ) as load:
        load.wait_for(250)
    calls, attempts = len(load.outcomes), sent() - before
    allowed = 1.2 * calls + 10 * (time.monotonic() - began_s)
    wrong = check(board, load.outcomes, may_repeat=True, documented=DOCUMENTED)
    fault = f"all replicas die, and those that replace them, under {calls} idempotent calls"
    measured(12, fault, "calls sent", f"≤ 1.2 × calls + 10/s = {allowed:.0f}", attempts)
    measured(12, fault, "calls hung", "0", len(wrong.hung))
    assert wrong == NOTHING_WRONG
    assert len(load.failed) == calls
    assert board.count("start") <= attempts <= allowed
    assert serve_grpc.handle_statistics(handle).retries > 0
