"""Rows 3 and 4: replicas that stand still, as processes or only their event loop, and go on."""

from __future__ import annotations

import os
import time

import pytest

import serve_grpc
from serve_grpc.carriers.grpc.credentials import KEEPALIVE_MS, PING_TIMEOUT_MS
from serve_grpc.carriers.local.standstill import LOOK_S
from serve_grpc.errors import ReplicaDiedError
from tests.faults.calls import SETTLE_S, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.limits import allowed
from tests.faults.load import calling
from tests.faults.replicas import pids_of, stopped, wait_for_replicas
from tests.ray.apps.troubled import TROUBLED
from tests.ray.carriers import CARRIERS, carriers_of, options_over
from tests.ray.waiting import eventually

STOPPED_S, BLOCKED_S = 20, 10
PICKS_STOP_S = 3.0
NAMES = {"grpc": "gRPC", "local": "the local lane"}
NOTICED_S = {"grpc": (KEEPALIVE_MS + PING_TIMEOUT_MS) / 1000, "local": 2 * LOOK_S}


def state_of(handle, replica_id):
    states = {r.replica_id: r.state for r in serve_grpc.handle_statistics(handle).replicas}
    return states[replica_id]


@pytest.mark.long
@pytest.mark.parametrize("carrier", CARRIERS)
def test_calls_of_a_stopped_process_are_lost_and_its_late_replies_dropped(
    deploy, board, callers, measured, carrier
):
    """Each carrier notices it in its own way."""
    options = options_over(carrier, {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.01}})
    handle = deploy(TROUBLED.options(**options).bind(), f"stopped-{carrier}")
    pids = wait_for_replicas(handle, 2)
    assert carriers_of(handle) == [carrier] * 2
    names = [f"z{i}" for i in range(100)]
    running = callers.start(
        outcomes_of((name, lambda name=name: handle.remote(board.path, name, 2)) for name in names)
    )
    eventually(lambda: board.count("start") == len(names), timeout_s=30)
    victim = int(board.lines("start")[0][2])
    on_victim = {line[1] for line in board.lines("start") if int(line[2]) == victim}
    with (
        stopped(victim),
        calling(callers, lambda n: handle.remote(board.path, n), in_flight=4) as load,
    ):
        stopped_s = time.monotonic()
        outcomes = running.result(SETTLE_S)
        lost = [o for o in outcomes if o.kind != "ok"]
        settle_s = max(o.ended_s for o in lost) - stopped_s
        eventually(lambda: time.monotonic() - stopped_s > STOPPED_S, timeout_s=2 * STOPPED_S)
    # It goes on: its handlers end, and their replies are nobody's.
    eventually(lambda: board.count("end") >= len(names) + len(load.outcomes) - len(load.failed))
    assert wait_for_replicas(handle, 2) == pids
    later = callers.start(
        outcomes_of(
            (f"later{i}", lambda i=i: handle.remote(board.path, f"later{i}")) for i in range(100)
        )
    ).result(SETTLE_S)
    everything = [*outcomes, *load.outcomes, *later]
    wrong = check(board, everything)
    fault = f"SIGSTOP of 1 of 2 replicas for {STOPPED_S} s, then SIGCONT; over {NAMES[carrier]}"
    limit_s = NOTICED_S[carrier] + 1
    measured(3, fault, "until its calls are lost", f"≤ {limit_s:.0f} s", f"{settle_s:.1f} s")
    measured(3, fault, "replies misdelivered", "0", len(wrong.misdelivered))
    measured(3, fault, "calls hung", "0", len(wrong.hung))
    assert wrong == NOTHING_WRONG
    assert {o.name for o in lost} == on_victim
    assert {type(o.error) for o in [*lost, *load.failed]} == {ReplicaDiedError}
    assert [o.name for o in later if o.kind != "ok"] == []
    assert settle_s <= allowed(limit_s)


@pytest.mark.long
def test_a_blocked_loop_gets_no_new_calls_and_keeps_those_it_has(deploy, board, callers, measured):
    """The loop that answers heartbeats is blocked, which takes user code that shares it."""
    env = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
    app = TROUBLED.options(
        num_replicas=3,
        ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": env}},
    ).bind()
    handle = deploy(app, "blocked")
    pids = wait_for_replicas(handle, 3)
    ids = {r.replica_id for r in serve_grpc.handle_statistics(handle).replicas}
    held = [f"h{i}" for i in range(60)]
    running = callers.start(
        outcomes_of((name, lambda name=name: handle.remote(board.path, name, 2)) for name in held)
    )
    eventually(lambda: board.count("start") == len(held), timeout_s=30)
    with calling(callers, lambda n: handle.remote(board.path, n, 0.02), in_flight=60) as load:
        load.wait_for(200)
        blocking = callers.start(
            outcomes_of([("block", lambda: handle.block.remote(board.path, "block", BLOCKED_S))])
        )
        eventually(lambda: board.count("start", "block") == 1, timeout_s=10)
        blocked_s = time.monotonic()
        victim = eventually(
            lambda: [i for i in ids if state_of(handle, i) == "suspect"], timeout_s=BLOCKED_S
        )[0]
        stop_s = time.monotonic() - blocked_s
        picked = serve_grpc.handle_statistics(handle)
        in_flight = {r.replica_id: r.in_flight for r in picked.replicas}[victim]
        load.wait_for(200)
        in_flight_later = {
            r.replica_id: r.in_flight for r in serve_grpc.handle_statistics(handle).replicas
        }[victim]
        outcomes = [*running.result(SETTLE_S), *blocking.result(SETTLE_S)]
    everything = [*outcomes, *load.outcomes]
    wrong = check(board, everything)
    failed = [o.name for o in everything if o.kind != "ok"]
    fault = f"a replica's event loop blocked for {BLOCKED_S} s"
    measured(4, fault, "until it gets no new calls", f"≤ {PICKS_STOP_S:.0f} s", f"{stop_s:.2f} s")
    measured(4, fault, "false deaths: calls failed", "0", len(failed))
    assert wrong == NOTHING_WRONG
    assert failed == []
    assert in_flight_later <= in_flight  # none was added
    assert stop_s <= allowed(PICKS_STOP_S)
    assert pids_of(handle) == pids
    assert os.getpid() not in pids
