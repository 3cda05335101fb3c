"""Rows 6, 7 and 8: what operators and the control plane do while calls go on."""

from __future__ import annotations

import pytest
import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

import serve_grpc
from tests.faults.calls import SETTLE_S, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.load import calling
from tests.faults.replicas import pids_of, wait_for_replicas
from tests.ray.apps.troubled import TROUBLED
from tests.ray.waiting import eventually

IN_FLIGHT = 8
WORK_S = 0.02


def steady(callers, handle, board, prefix="c"):
    """Calls and streams, at a steady pace."""

    def make(name):
        if name.endswith("0"):
            stream = handle.options(method_name="stream", stream=True)
            return stream.remote(board.path, name, ITEMS, WORK_S / ITEMS)
        return handle.remote(board.path, name, WORK_S)

    return calling(callers, make, in_flight=IN_FLIGHT, prefix=prefix)


ITEMS = 5


def redeploy(app, name):
    """Without waiting for it."""
    serve._run(app, name=name, route_prefix=None, _blocking=False)


@pytest.mark.long
def test_rolling_redeploy_fails_no_call(deploy, board, callers, measured):
    app = TROUBLED.options(num_replicas=3)
    handle = deploy(app.bind(), "rolling")
    old = wait_for_replicas(handle, 3)
    with steady(callers, handle, board) as load:
        load.wait_for(200)
        redeploy(app.bind(inner=None), "rolling")
        new = eventually(lambda: len(p := pids_of(handle)) == 3 and not p & old and p, timeout_s=90)
        load.wait_for(200)
    wrong = check(board, load.outcomes, items=ITEMS)
    fault = "rolling redeploy of 3 replicas under load"
    measured(6, fault, "calls failed", "0", f"{len(load.failed)} of {len(load.outcomes)}")
    assert wrong == NOTHING_WRONG
    assert [o.error for o in load.failed] == []
    assert not new & old


@pytest.mark.long
def test_scaling_down_fails_no_call(deploy, board, callers, measured):
    handle = deploy(TROUBLED.options(num_replicas=3).bind(), "shrinking")
    wait_for_replicas(handle, 3)
    with steady(callers, handle, board) as load:
        load.wait_for(200)
        redeploy(TROUBLED.options(num_replicas=1).bind(), "shrinking")
        eventually(lambda: len(pids_of(handle)) == 1, timeout_s=60)
        load.wait_for(200)
    wrong = check(board, load.outcomes, items=ITEMS)
    fault = "scale down from 3 to 1 replica under load"
    measured(7, fault, "calls failed", "0", f"{len(load.failed)} of {len(load.outcomes)}")
    assert wrong == NOTHING_WRONG
    assert [o.error for o in load.failed] == []


@pytest.mark.long
def test_calls_to_a_deployment_scaled_to_zero_wait_for_its_first_replica(
    deploy, board, callers, measured
):
    app = TROUBLED.options(
        autoscaling_config={
            "min_replicas": 0,
            "initial_replicas": 1,
            "max_replicas": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0.5,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 1,
        }
    ).bind()
    handle = deploy(app, "to-zero")
    outcomes = []
    for turn in range(2):
        eventually(lambda: _running("to-zero") == 0, timeout_s=60)
        names = [f"t{turn}-{i}" for i in range(50)]
        outcomes += callers.start(
            outcomes_of((n, lambda n=n: handle.remote(board.path, n, WORK_S)) for n in names)
        ).result(SETTLE_S)
    failed = [o for o in outcomes if o.kind != "ok"]
    fault = "50 calls to a deployment scaled to zero, twice"
    measured(7, fault, "calls failed", "0", f"{len(failed)} of {len(outcomes)}")
    assert check(board, outcomes) == NOTHING_WRONG
    assert [o.error for o in failed] == []


def _running(name):
    deployments = serve.status().applications[name].deployments
    return sum(deployments["Troubled"].replica_states.values())


@pytest.mark.long
def test_the_controllers_death_and_return_fail_no_call(deploy, board, callers, measured):
    app = TROUBLED.options(num_replicas=2)
    handle = deploy(app.bind(), "orphaned")
    pids = wait_for_replicas(handle, 2)
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    old_controller = ray.get(controller.get_pid.remote())
    with steady(callers, handle, board) as load:
        load.wait_for(200)
        ray.kill(controller, no_restart=False)
        load.wait_for(200)
        eventually(lambda: _pid_of(controller) not in (None, old_controller), timeout_s=60)
        load.wait_for(200)
        survivors = pids_of(handle)
        redeploy(app.options(num_replicas=3).bind(), "orphaned")  # it is in charge again
        eventually(lambda: len(pids_of(handle)) == 3, timeout_s=60)
        load.wait_for(100)
    wrong = check(board, load.outcomes, items=ITEMS)
    fault = "controller killed and restarted under load"
    measured(8, fault, "calls failed", "0", f"{len(load.failed)} of {len(load.outcomes)}")
    assert wrong == NOTHING_WRONG
    assert [o.error for o in load.failed] == []
    assert survivors == pids


def _pid_of(controller):
    try:
        return ray.get(controller.get_pid.remote(), timeout=5)
    except ray.exceptions.RayError:
        return None


@pytest.mark.long
def test_a_call_that_a_leaving_replica_turns_away_goes_to_its_successor(deploy, board, callers):
    """Its news come after it has left the set; the successor was never called before."""
    # With one loop for Serve and the user's code, blocked code keeps the replica from its requests.
    one_loop = {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}
    options = {"num_cpus": 0.01, "runtime_env": one_loop}
    app = TROUBLED.options(name="Old", max_ongoing_requests=1, ray_actor_options=options)
    filler = TROUBLED.options(name="Filler")
    outer = deploy(filler.bind(app.bind()), "succession")
    handle = serve_grpc.get_deployment_handle("Old", "succession").options(_by_reference=False)
    wait_for_replicas(handle, 1)
    old = replica_ids(handle)
    filling = outer.fill.remote(board.path, 1, 8)
    eventually(lambda: board.count("held") == 1)
    running = callers.start(outcomes_of([("x", lambda: handle.remote(board.path, "x"))]))
    eventually(lambda: serve_grpc.handle_statistics(handle).in_flight == 1)
    redeploy(filler.bind(app.bind(inner=None)), "succession")
    eventually(lambda: (ids := replica_ids(handle)) and not ids & old, timeout_s=30)
    (outcome,) = running.result(SETTLE_S)
    board.release()
    filling.result(timeout_s=30)
    assert check(board, [outcome]) == NOTHING_WRONG
    assert outcome.kind == "ok", outcome


def replica_ids(handle):
    return {replica.replica_id for replica in serve_grpc.handle_statistics(handle).replicas}
