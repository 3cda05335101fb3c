"""Rows 13 and 14: calls that are cancelled, left by a caller that dies, or out of time."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

import pytest
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.errors import DeadlineExceededError, ReplicaDiedError
from tests.faults.calls import SETTLE_S, outcome_of, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.limits import allowed
from tests.faults.slots import has_all_slots
from tests.ray.apps.troubled import TROUBLED, times
from tests.ray.waiting import eventually

HOP_S = 0.1
"""A cancel may take this long for each process it passes."""
ROUNDS = 20


@pytest.fixture(scope="module")
def narrow(deploy):
    """One replica of one slot."""
    return deploy(TROUBLED.options(max_ongoing_requests=1).bind(), "one-slot")


def in_ms(seconds):
    return f"{seconds * 1000:.0f} ms"


def median_of(measured, row, fault, what, limit_s, taken_s):
    """Write down the median, which is what is asserted, and the slowest."""
    median_s = statistics.median(taken_s)
    text = f"{in_ms(median_s)} (slowest {in_ms(max(taken_s))})"
    measured(row, fault, f"{what}, median of {len(taken_s)}", f"≤ {in_ms(limit_s)}", text)
    return median_s


AWAITED = {"through": "awaited", "beside": "not awaited"}


@pytest.mark.parametrize("method", AWAITED)
def test_cancel_reaches_the_handler_and_what_it_calls(outer, board, measured, method):
    hops = []
    for i in range(ROUNDS):
        response = outer.options(method_name=method).remote(board.path, f"r{i}", 30)
        eventually(lambda i=i: board.count("start", f"r{i}") == 1)
        cancelled_s = time.monotonic()
        response.cancel()
        with pytest.raises(RequestCancelledError):
            response.result(timeout_s=20)
        eventually(lambda i=i: {f"r{i}", f"outer-r{i}"} <= times(board, "cancelled").keys())
        at_s = times(board, "cancelled")
        hops.append((at_s[f"outer-r{i}"] - cancelled_s, at_s[f"r{i}"] - cancelled_s))
    fault = f"cancel of a running call, whose nested call is {AWAITED[method]}"
    to_outer, to_inner = (
        median_of(measured, 13, fault, what, limit_s, taken_s)
        for what, limit_s, taken_s in zip(
            ("to the handler", "to that of the nested call"),
            (HOP_S, 2 * HOP_S),
            zip(*hops, strict=True),
            strict=True,
        )
    )
    assert board.count("cancelled") == 2 * ROUNDS
    assert to_outer <= HOP_S
    assert to_inner <= 2 * HOP_S


def test_cancel_of_a_stream_reaches_its_generator(inner, board, measured):
    took_s = []
    for i in range(ROUNDS):
        handle = inner.options(method_name="stream", stream=True)
        stream = handle.remote(board.path, f"s{i}", 10_000, 0.01)
        assert next(stream) == f"s{i}/0"
        cancelled_s = time.monotonic()
        stream.cancel()
        with pytest.raises(RequestCancelledError):
            list(stream)  # an item that came before the cancel may be handed out first
        at_s = eventually(lambda i=i: times(board, "cancelled").get(f"s{i}"))
        took_s.append(at_s - cancelled_s)
    to_generator = median_of(measured, 13, "cancel of a stream", "to its generator", HOP_S, took_s)
    assert to_generator <= HOP_S


def test_cancel_of_a_queued_call_never_starts_it(narrow, board, callers, measured):
    running = narrow.remote(board.path, "running", 1)
    eventually(lambda: board.count("start") == 1)
    queued = [narrow.remote(board.path, f"q{i}") for i in range(ROUNDS)]
    cancelled_s = time.monotonic()
    for response in queued:
        response.cancel()
    for response in queued:
        with pytest.raises(RequestCancelledError):
            response.result(timeout_s=20)
    took_s = time.monotonic() - cancelled_s
    assert running.result(timeout_s=20) == "running"
    assert narrow.remote(board.path, "after").result(timeout_s=20) == "after"
    fault = f"cancel of {ROUNDS} queued calls"
    measured(13, fault, "of them started", "0", board.count("start") - 2)
    measured(13, fault, "until all have their error", "≤ 100 ms", in_ms(took_s))
    assert board.count("start") == 2
    assert took_s <= allowed(HOP_S)


def test_calls_of_a_killed_caller_are_cancelled_and_leak_no_slot(
    outer, inner, board, callers, measured
):
    calls = 500
    names = [f"n{i}" for i in range(calls)]
    running = callers.start(
        outcomes_of((n, lambda n=n: outer.through.remote(board.path, n, 30)) for n in names)
    )
    started = eventually(
        lambda: len(lines := board.lines("start")) == 2 * calls and lines, timeout_s=30
    )
    (pid,) = {int(line[2]) for line in started if line[1].startswith("outer-")}
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    outcomes = running.result(SETTLE_S)
    eventually(lambda: len(times(board, "cancelled")) == calls, timeout_s=20)
    took_s = max(times(board, "cancelled").values()) - killed_s
    fault = f"a caller is killed with {calls} calls in flight"
    measured(13, fault, "until the last handler has its CancelledError", "≤ 1 s", f"{took_s:.2f} s")
    is_whole = has_all_slots(inner, board, callers, calls)
    measured(13, fault, "slots leaked", "0", 0 if is_whole else "some")
    assert {type(o.error) for o in outcomes} == {ReplicaDiedError}
    assert {o.kind for o in outcomes} == {"unknown"}
    assert took_s <= allowed(1)
    assert is_whole


# ------------------------------------------------------------ deadlines

OVERSHOOT_S = 0.05


async def overshoot_of(handle, board, name, timeout_s):
    """The outcome of a call, and how long after its deadline it came."""
    started_s = time.monotonic()
    outcome = await outcome_of(
        name, handle.options(timeout_s=timeout_s).remote(board.path, name, 30)
    )
    return outcome, outcome.ended_s - started_s - timeout_s


def overshoots(callers, handle, board, prefix, timeout_s, step_s=0.01):
    async def main():
        names = [f"{prefix}{i}" for i in range(ROUNDS)]
        return await asyncio.gather(
            *(
                overshoot_of(handle, board, name, timeout_s + i * step_s)
                for i, name in enumerate(names)
            )
        )

    outcomes, late_s = zip(*callers.start(main()).result(SETTLE_S), strict=True)
    assert {type(o.error) for o in outcomes} == {DeadlineExceededError}
    return outcomes, late_s


def test_deadline_of_a_running_call(inner, board, callers, measured):
    outcomes, late_s = overshoots(callers, inner, board, "run", 0.3)
    eventually(lambda: board.count("cancelled") == ROUNDS)
    fault = f"the deadlines of {ROUNDS} running calls pass"
    late_s = median_of(measured, 14, fault, "overshoot", OVERSHOOT_S, late_s)
    assert check(board, outcomes) == NOTHING_WRONG
    assert {o.kind for o in outcomes} == {"unknown"}
    assert late_s <= allowed(OVERSHOOT_S)


def test_deadline_of_a_call_that_was_not_sent(inner, board, callers, measured):
    outcomes, late_s = overshoots(callers, inner, board, "new", 1e-6, step_s=0)
    assert inner.remote(board.path, "after").result(timeout_s=20) == "after"
    fault = f"the deadlines of {ROUNDS} calls pass before they are sent"
    late_s = median_of(measured, 14, fault, "overshoot", OVERSHOOT_S, late_s)
    measured(14, fault, "of them started", "0", board.count("start") - 1)
    assert check(board, outcomes) == NOTHING_WRONG
    assert {o.kind for o in outcomes} == {"failed"}
    assert board.count("start") == 1
    assert late_s <= allowed(OVERSHOOT_S)


def test_deadline_of_a_queued_call(narrow, board, callers, measured):
    running = narrow.remote(board.path, "running", 1.5)
    eventually(lambda: board.count("start") == 1)
    outcomes, late_s = overshoots(callers, narrow, board, "queued", 0.2)
    assert running.result(timeout_s=20) == "running"
    assert narrow.remote(board.path, "after").result(timeout_s=20) == "after"
    fault = f"the deadlines of {ROUNDS} queued calls pass"
    late_s = median_of(measured, 14, fault, "overshoot", OVERSHOOT_S, late_s)
    measured(14, fault, "of them started", "0", board.count("start") - 2)
    assert check(board, outcomes) == NOTHING_WRONG
    assert {o.kind for o in outcomes} == {"failed"}
    assert board.count("start") == 2
    assert late_s <= allowed(OVERSHOOT_S)


def test_deadline_of_a_call_that_waits_on_its_replica(inner, board, callers, measured):
    """It was taken in, but the user's loop was busy until too late."""
    blocking = inner.block.remote(board.path, "block", 1)
    eventually(lambda: board.count("start") == 1)
    outcomes, late_s = overshoots(callers, inner, board, "taken", 0.2)
    assert blocking.result(timeout_s=20) == "block"
    assert inner.remote(board.path, "after").result(timeout_s=20) == "after"
    fault = f"the deadlines of {ROUNDS} calls pass on a replica whose user loop is busy"
    late_s = median_of(measured, 14, fault, "overshoot", OVERSHOOT_S, late_s)
    measured(14, fault, "of them started", "0", board.count("start") - 2)
    assert check(board, outcomes) == NOTHING_WRONG
    assert board.count("start") == 2
    assert late_s <= allowed(OVERSHOOT_S)
