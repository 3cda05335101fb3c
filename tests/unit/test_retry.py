"""Backoff of a full house, and the budget of calls that may be repeated."""

from __future__ import annotations

import random

import pytest

from serve_grpc.routing.retry import Backoff, RetryBudget


def test_pauses_grow_by_the_multiplier_up_to_the_ceiling() -> None:
    backoff = Backoff(initial_s=1.0, multiplier=3, max_s=20.0)
    assert [backoff.delay_s(attempt) for attempt in range(5)] == [1.0, 3.0, 9.0, 20.0, 20.0]


@pytest.mark.parametrize("multiplier", [2, 2.0])
def test_a_pause_stays_at_the_ceiling_however_often_it_was_taken(multiplier: float) -> None:
    backoff = Backoff(multiplier=multiplier)
    assert backoff.delay_s(100_000) == backoff.max_s


def test_a_multiplier_of_one_keeps_the_first_pause() -> None:
    assert Backoff(initial_s=0.1, multiplier=1, max_s=5).delay_s(1000) == 0.1


def test_a_new_budget_allows_as_many_repeats_as_one_second_does() -> None:
    budget = RetryBudget(0.0, per_second=10)
    assert [budget.try_spend(0.0) for _ in range(12)] == [True] * 10 + [False] * 2


@pytest.mark.parametrize(("calls", "allowed"), [(3, 0), (4, 1), (7, 1), (8, 2)])
def test_calls_add_their_share_and_only_whole_repeats_count(calls: int, allowed: int) -> None:
    budget = RetryBudget(0.0, ratio=0.25, per_second=1)
    assert budget.try_spend(0.0)
    for _ in range(calls):
        budget.on_call()
    assert sum(budget.try_spend(0.0) for _ in range(10)) == allowed


def test_time_adds_its_share() -> None:
    budget = RetryBudget(0.0, per_second=2)
    assert sum(budget.try_spend(0.0) for _ in range(10)) == 2
    assert sum(budget.try_spend(1.5) for _ in range(10)) == 3


def test_idle_time_is_not_saved_up_without_bound() -> None:
    budget = RetryBudget(0.0, per_second=10)
    assert sum(budget.try_spend(1e6) for _ in range(1000)) == 100


def test_a_clock_that_stands_still_gives_nothing() -> None:
    budget = RetryBudget(5.0, per_second=1)
    assert [budget.try_spend(5.0), budget.try_spend(5.0), budget.try_spend(4.0)] == [
        True,
        False,
        False,
    ]


def test_over_any_time_repeats_stay_within_a_fifth_of_the_calls_and_ten_a_second() -> None:
    rng = random.Random(1)
    budget, now_s, calls, repeats = RetryBudget(0.0), 0.0, 0, 0
    for _ in range(5000):
        now_s += rng.expovariate(200)
        budget.on_call()
        calls += 1
        while rng.random() < 0.9 and budget.try_spend(now_s):
            repeats += 1
    assert 0 < repeats <= 0.2 * calls + 10 * now_s + 10
