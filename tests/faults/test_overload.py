"""Rows 9, 10 and 11: more calls than a deployment can take, and replicas that are worth less."""

from __future__ import annotations

import statistics
import time
from collections import Counter

import pytest
from ray.serve.exceptions import BackPressureError

import serve_grpc
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.limits import allowed
from tests.faults.load import arriving, calling
from tests.faults.replicas import pids_of, wait_for_replicas
from tests.ray.apps.troubled import FAILS, SLOW, TROUBLED, give_mood
from tests.ray.waiting import eventually

SLOTS = 10
WORK_S = 0.1
PEAK_PER_S = SLOTS / WORK_S
ROUND_S = 3.0


def wait_s(seconds):
    """Let the load go on for this long."""
    until_s = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until_s, timeout_s=2 * seconds + 5)


def goodput_per_s(load):
    """Successes a second, of the middle of a round."""
    start_s = time.monotonic()
    wait_s(ROUND_S)
    return load.ok_between(start_s, start_s + ROUND_S) / ROUND_S


@pytest.mark.long
def test_goodput_and_admission_under_three_times_the_load(deploy, board, callers, measured):
    app = TROUBLED.options(
        num_replicas=1, max_ongoing_requests=SLOTS, max_queued_requests=2 * SLOTS
    )
    handle = deploy(app.bind(), "flooded")

    def make(name):
        return handle.remote(board.path, name, WORK_S)

    peaks, floods, outcomes = [], [], []
    for turn in range(3):
        with calling(callers, make, in_flight=2 * SLOTS, prefix=f"p{turn}-") as load:
            load.wait_for(2 * SLOTS)
            peaks.append(goodput_per_s(load))
        outcomes += load.outcomes
        with arriving(callers, make, per_s=3 * PEAK_PER_S, prefix=f"f{turn}-") as load:
            load.wait_for(4 * SLOTS)
            floods.append(goodput_per_s(load))
        outcomes += load.outcomes
    peak, flood = statistics.median(peaks), statistics.median(floods)
    refused = [o for o in outcomes if o.kind != "ok"]
    fault = f"3 × overload of a replica of {SLOTS} slots"
    measured(9, fault, "most requests that ran at once", f"≤ {SLOTS}", board.most_running)
    measured(
        9, fault, "goodput", "≥ 90 % of peak", f"{flood / peak:.0%} ({flood:.0f}/s of {peak:.0f}/s)"
    )
    measured(9, fault, "calls refused otherwise than by BackPressureError", "0", len(
        [o for o in refused if not isinstance(o.error, BackPressureError)]
    ))  # fmt: skip
    assert check(board, outcomes, documented=(BackPressureError,)) == NOTHING_WRONG
    assert board.most_running == SLOTS
    assert len(refused) > SLOTS
    assert flood >= 0.9 * peak


def picks_between(board, start_s, end_s):
    """How many calls each replica started in this time."""
    started = [line for line in board.lines("start") if start_s <= float(line[4]) < end_s]
    return Counter(int(line[2]) for line in started)


def test_a_replica_that_fails_at_once_is_not_attractive(three, board, callers, measured):
    victim = min(pids_of(three))
    give_mood(board, FAILS, victim)
    with calling(callers, lambda n: three.moody.remote(board.path, n, 0.02), in_flight=30) as load:
        load.wait_for(1)
        wait_s(1)
        start_s = time.monotonic()
        wait_s(2)
        picks = picks_between(board, start_s, time.monotonic())
    share = picks[victim] / picks.total()
    fault = "1 of 3 replicas fails each call at once"
    measured(10, fault, "its share of the picks after 1 s", "≤ 5 %", f"{share:.1%}")
    assert {type(o.error).__name__ for o in load.failed} == {"RayTaskError(ValueError)"}
    assert share <= allowed(0.05)


@pytest.mark.long
def test_a_replica_that_rejects_at_once_is_not_attractive(deploy, board, callers, measured):
    """Another process holds all its slots."""
    slots = 20
    crowd = TROUBLED.options(name="Crowd", num_replicas=3, max_ongoing_requests=slots).bind()
    filler = deploy(TROUBLED.options(name="Filler").bind(crowd), "crowd")
    handle = serve_grpc.get_deployment_handle("Crowd", "crowd").options(_by_reference=False)
    victim, *others = sorted(wait_for_replicas(handle, 3))
    filling = filler.fill.remote(board.path, 3 * slots)
    eventually(lambda: board.count("held") == 3 * slots)
    for pid in others:
        board.release(str(pid))
    with calling(callers, lambda n: handle.remote(board.path, n, 0.02), in_flight=20) as load:
        load.wait_for(1)
        wait_s(1)
        before, start_s = serve_grpc.handle_statistics(handle).rejections, time.monotonic()
        wait_s(2)
        rejections = serve_grpc.handle_statistics(handle).rejections - before
        picks = picks_between(board, start_s, time.monotonic())
    board.release()
    filling.result(timeout_s=20)
    share = rejections / (rejections + picks.total())
    fault = "1 of 3 replicas rejects each call at once"
    measured(10, fault, "its share of the picks after 1 s", "≤ 5 %", f"{share:.1%}")
    assert check(board, load.outcomes) == NOTHING_WRONG
    assert load.failed == []
    assert picks[victim] == 0
    assert share <= allowed(0.05)


def test_load_shifts_away_from_a_slow_replica(three, board, callers, measured):
    victim = min(pids_of(three))
    give_mood(board, SLOW, victim)
    with calling(callers, lambda n: three.moody.remote(board.path, n, 0.06), in_flight=12) as load:
        load.wait_for(1)
        wait_s(1)
        start_s = time.monotonic()
        wait_s(3)
        picks = picks_between(board, start_s, time.monotonic())
    share = picks[victim] / (picks.total() / 3)
    fault = "1 of 3 replicas 10 × slower"
    measured(11, fault, "its part of a fair share", "≤ 1/3", f"{share:.2f}")
    assert check(board, load.outcomes) == NOTHING_WRONG
    assert load.failed == []
    assert share <= allowed(1 / 3)
