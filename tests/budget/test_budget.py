"""The pure parts of a call stay within their budgets of instructions; see budgets.py."""

from __future__ import annotations

import platform
from functools import partial

import pytest

from tests.budget.budgets import BUDGETS, HOW_TO_MEASURE, MAX_RATIO, Budget, measure_ratio
from tests.budget.instructions import count_instructions
from tests.budget.workloads import PICKS, pick_among


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.name)
def test_a_call_stays_within_its_budget(budget: Budget) -> None:
    used = budget.measure()
    assert used <= budget.allowed, (
        f"{budget.name!r} takes {used:.1f} bytecode instructions per call on CPython "
        f"{platform.python_version()}, {budget.allowed} are allowed. Which code takes them: "
        f'`{HOW_TO_MEASURE} "{budget.name}"`. If the cost is meant, run `{HOW_TO_MEASURE}` on '
        "CPython 3.10, 3.11 and 3.13, and allow the worst plus 15 % in tests/budget/budgets.py."
    )


def test_a_pick_takes_the_same_among_few_and_many() -> None:
    def per_pick(replicas: int) -> float:
        return sum(count_instructions(partial(pick_among, replicas)).values()) / PICKS

    few = per_pick(10)
    for replicas in (100, 1_000, 10_000):
        many = per_pick(replicas)
        assert many <= 1.2 * few, (
            f"a pick takes {few:.0f} bytecode instructions among 10 replicas and {many:.0f} among "
            f"{replicas}: it looks at more replicas the more there are. Which code does: "
            f'`{HOW_TO_MEASURE} "pick among 1000 replicas"`.'
        )


def test_the_session_machines_hide_no_cost_in_c() -> None:
    ratio = measure_ratio()
    assert ratio <= MAX_RATIO, (
        f"a batch through both session machines takes {ratio:.2f} times as long as the reference "
        f"loop of tests/budget/workloads.py, {MAX_RATIO} is allowed, on CPython "
        f"{platform.python_version()}. If the budgets of instructions hold, the time is spent in "
        f"C: copies, protobuf, sorting. `{HOW_TO_MEASURE}` prints the ratio again; if the cost is "
        "meant, set MAX_RATIO in tests/budget/budgets.py to 1.5 times the worst of CPython 3.10, "
        "3.11 and 3.13."
    )


def test_instructions_are_counted_alike_each_time() -> None:
    def counted() -> int:
        return sum(count_instructions(lambda: lambda: [number for number in range(10)]).values())

    assert counted() == counted() > 10
