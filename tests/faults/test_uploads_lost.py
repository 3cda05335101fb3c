"""Row 23: calls with streams as arguments when a process at either end dies, or stands still."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter

import pytest
from ray.exceptions import RayTaskError

from serve_grpc.errors import ReplicaDiedError, ServeGrpcError
from tests.faults.calls import SETTLE_S, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.limits import allowed
from tests.faults.replicas import stopped, wait_for_replicas
from tests.faults.slots import has_all_slots
from tests.ray.apps.fed import FED, KINDS, Feed, upload
from tests.ray.apps.troubled import times
from tests.ray.carriers import carriers_of, options_over
from tests.ray.waiting import eventually

ROW = 23
UPLOADS = 100
NAMES = {"grpc": "gRPC", "local": "the local lane"}
WAYS = tuple(itertools.product(KINDS, KINDS))
"""Of which kind a generator and its handler are."""
PAUSE_S = 0.05
SETTLED_S = 1.0


def ways(count):
    """A name for each upload, and what kinds it is of."""
    return [(f"u{i}", *WAYS[i % len(WAYS)]) for i in range(count)]


def uploads_of(feeder, board, number):
    """Calls of the feeder, each of which makes one upload of so many items."""
    return [
        (name, lambda n=name, k=kinds: feeder.upload.remote(board.path, n, number, PAUSE_S, *k))
        for name, *kinds in ways(UPLOADS)
    ]


def notes_of_uploads(board, *events):
    """How many of the uploads' handlers, or generators, came to this."""
    names = Counter(line[1] for event in events for line in board.lines(event))
    return sum(names[name] for name, *_ in ways(UPLOADS))


def test_uploads_of_a_killed_caller_end_at_once_and_never_look_complete(
    feeder, sink, board, callers, measured, carrier
):
    pid = feeder.pid.remote().result(timeout_s=30)
    running = callers.start(outcomes_of(uploads_of(feeder, board, 10**6)))
    eventually(lambda: board.count("reading") == UPLOADS, timeout_s=60)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    outcomes = running.result(SETTLE_S)
    eventually(lambda: notes_of_uploads(board, "cancelled", "failed") == UPLOADS)
    told_s = max((times(board, "cancelled") | times(board, "failed")).values()) - killed_s
    complete = notes_of_uploads(board, "end", "short")
    fault = f"SIGKILL of a caller in the midst of {UPLOADS} uploads; over {NAMES[carrier]}"
    measured(ROW, fault, "until the last handler is told", "≤ 1 s", f"{told_s:.2f} s")
    measured(ROW, fault, "handlers that saw an end of their stream", "0", complete)
    is_whole = has_all_slots(sink, board, callers, UPLOADS)
    measured(ROW, fault, "slots leaked", "0", 0 if is_whole else "some")
    assert {type(o.error) for o in outcomes} == {ReplicaDiedError}
    assert complete == 0
    assert is_whole
    assert told_s <= allowed(SETTLED_S)


def test_uploads_to_a_killed_replica_fail_truthfully_and_close_their_generators(
    deploy, board, callers, measured, carrier
):
    number = 60
    options = {"num_replicas": 3, "ray_actor_options": {"num_cpus": 0.01}}
    app = FED.options(**options_over(carrier, options)).bind()
    handle = deploy(app, f"uploads-killed-{carrier}")
    wait_for_replicas(handle, 3)
    assert carriers_of(handle) == [carrier] * 3
    left_s: dict[str, float] = {}
    feeds = {
        name: Feed(name, number, PAUSE_S, lambda n=name: left_s.update({n: time.monotonic()}))
        for name, *_ in ways(UPLOADS)
    }
    running = callers.start(
        outcomes_of(
            (name, lambda n=name, k=kinds: upload(handle, board.path, feeds[n], *k))
            for name, *kinds in ways(UPLOADS)
        )
    )
    eventually(lambda: board.count("reading") == UPLOADS, timeout_s=30)
    victim = int(board.lines("start")[0][2])
    lost = {line[1] for line in board.lines("start") if int(line[2]) == victim}
    os.kill(victim, signal.SIGKILL)
    killed_s = time.monotonic()
    outcomes = running.result(SETTLE_S)
    eventually(lambda: len(left_s) == UPLOADS)
    failed = {o.name: o for o in outcomes if o.kind != "ok"}
    settle_s = max(o.ended_s for o in failed.values()) - killed_s
    closed_s = max(left_s[name] for name in failed) - killed_s
    wrong = check(board, outcomes, items=number)
    closes = Counter(len(feed.ends) for feed in feeds.values())
    fault = f"SIGKILL of 1 of 3 replicas during {UPLOADS} uploads; over {NAMES[carrier]}"
    measured(ROW, fault, "until the last lost upload has its error", "≤ 1 s", f"{settle_s:.2f} s")
    measured(ROW, fault, "until its generator is closed", "≤ 1 s", f"{closed_s:.2f} s")
    measured(ROW, fault, "generators closed other than once", "0", UPLOADS - closes[1])
    measured(ROW, fault, "wrong", "0", wrong.counts())
    assert wrong == NOTHING_WRONG
    assert failed.keys() == lost
    assert {type(o.error) for o in failed.values()} == {ReplicaDiedError}
    assert {o.kind for o in failed.values()} == {"unknown"}
    assert closes == {1: UPLOADS}
    on_loop = {feeds[name].ends[0] for name, kind, _ in ways(UPLOADS) if kind == "loop"}
    assert on_loop == {callers.ident}
    assert all(feed.is_over for feed in feeds.values())
    assert max(settle_s, closed_s) <= allowed(SETTLED_S)


@pytest.mark.parametrize("end", ["caller", "replica"])
def test_uploads_outlive_a_process_that_stands_still_for_a_moment(
    feeder, sink, board, callers, measured, carrier, end
):
    number, times_stopped, stopped_s = 100, 2, 1.5
    pid = (feeder if end == "caller" else sink).pid.remote().result(timeout_s=30)
    running = callers.start(outcomes_of(uploads_of(feeder, board, number)))
    eventually(lambda: board.count("reading") == UPLOADS, timeout_s=30)
    for _ in range(times_stopped):
        seen = len(board.lines("closed"))
        with stopped(pid):
            time.sleep(stopped_s)  # what the fault is
        assert seen < UPLOADS
    outcomes = running.result(SETTLE_S)
    wrong = check(board, outcomes, items=number)
    failed = [o for o in outcomes if o.kind != "ok"]
    fault = f"SIGSTOP of the {end} of {UPLOADS} uploads for {stopped_s} s, {times_stopped} times"
    measured(ROW, f"{fault}; over {NAMES[carrier]}", "uploads failed", "0", len(failed))
    measured(ROW, f"{fault}; over {NAMES[carrier]}", "wrong", "0", wrong.counts())
    assert wrong == NOTHING_WRONG
    assert failed == []
    assert board.count("end") == board.count("closed") == UPLOADS


@pytest.mark.long
@pytest.mark.parametrize("end", ["caller", "replica"])
def test_uploads_of_a_process_that_stands_still_for_long_are_lost_and_never_look_complete(
    feeder, sink, board, callers, measured, carrier, end
):
    stopped_s = 12.0  # after 9 s at the latest its sessions are given up
    pid = (feeder if end == "caller" else sink).pid.remote().result(timeout_s=30)
    running = callers.start(outcomes_of(uploads_of(feeder, board, 10**6)))
    eventually(lambda: board.count("reading") == UPLOADS, timeout_s=30)
    with stopped(pid):
        time.sleep(stopped_s)  # what the fault is
    outcomes = running.result(SETTLE_S)
    eventually(lambda: notes_of_uploads(board, "cancelled", "failed") == UPLOADS, timeout_s=30)
    eventually(lambda: board.count("closed") >= UPLOADS, timeout_s=30)
    wrong = check(board, outcomes, documented=(ServeGrpcError, RayTaskError))
    complete = notes_of_uploads(board, "end", "short")
    closed = Counter(line[1] for line in board.lines("closed"))
    fault = f"SIGSTOP of the {end} of {UPLOADS} uploads for {stopped_s:.0f} s"
    fault = f"{fault}; over {NAMES[carrier]}"
    measured(ROW, fault, "handlers that saw an end of their stream", "0", complete)
    more = sum(number != 1 for number in closed.values())
    measured(ROW, fault, "generators closed other than once", "0", more)
    assert wrong == NOTHING_WRONG
    assert complete == 0
    assert set(closed.values()) == {1}
    assert has_all_slots(sink, board, callers, UPLOADS)
