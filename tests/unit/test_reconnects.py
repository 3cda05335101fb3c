"""Tries to reach lost replicas: a few as soon as they may be, many one after the other."""

from __future__ import annotations

import pytest

from serve_grpc.caller.reconnects import AT_ONCE, TRIES_PER_S, Reconnects

NOW_S, PAUSE_S = 1000.0, 0.1


def test_a_few_wait_for_their_own_pause_only() -> None:
    reconnects = Reconnects()
    assert [reconnects.due_s(NOW_S, PAUSE_S) for _ in range(AT_ONCE)] == [NOW_S + PAUSE_S] * AT_ONCE


def test_hundreds_are_spread() -> None:
    reconnects = Reconnects()
    due_s = [reconnects.due_s(NOW_S, PAUSE_S) for _ in range(500)]
    assert due_s == sorted(due_s)
    assert due_s[-1] == pytest.approx(NOW_S + (500 - AT_ONCE) / TRIES_PER_S)


def test_those_that_fail_again_and_again_cost_no_more_than_that() -> None:
    reconnects, tries = Reconnects(), 0
    waiting = [reconnects.due_s(NOW_S, PAUSE_S) for _ in range(500)]
    while (now_s := min(waiting)) < NOW_S + 60:
        tries += 1
        waiting.remove(now_s)
        waiting.append(reconnects.due_s(now_s, 2.0))
    assert tries == pytest.approx(60 * TRIES_PER_S, rel=0.05)


def test_after_a_time_without_tries_a_few_go_at_once_again() -> None:
    reconnects = Reconnects()
    for _ in range(500):
        reconnects.due_s(NOW_S, PAUSE_S)
    later_s = NOW_S + 60
    assert reconnects.due_s(later_s, PAUSE_S) == later_s + PAUSE_S
