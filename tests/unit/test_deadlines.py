"""Deadlines: the first of two holds, and what is left is told in whole milliseconds."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from typing import Any

import pytest

from serve_grpc import deadlines


def in_fresh_context(function: Callable[..., Any], *args: object) -> Any:
    return contextvars.Context().run(function, *args)


def test_without_any_timeout_there_is_no_deadline() -> None:
    assert in_fresh_context(deadlines.deadline_after, None) is None


def test_a_timeout_counts_from_now() -> None:
    before = time.monotonic()
    deadline_s = in_fresh_context(deadlines.deadline_after, 5.0)
    assert before + 5.0 <= deadline_s <= time.monotonic() + 5.0


@pytest.mark.parametrize("own_s", [None, 1000.0])
def test_a_nested_call_inherits_an_earlier_deadline(own_s: float | None) -> None:
    def nested() -> float | None:
        deadlines.set_current_deadline(inherited)
        return deadlines.deadline_after(own_s)

    inherited = time.monotonic() + 1.0
    assert in_fresh_context(nested) == inherited


def test_a_nested_call_may_have_less_time_than_it_inherits() -> None:
    def nested() -> float | None:
        deadlines.set_current_deadline(inherited)
        return deadlines.deadline_after(1.0)

    inherited = time.monotonic() + 1000.0
    assert in_fresh_context(nested) < inherited


def test_the_current_deadline_belongs_to_its_context() -> None:
    in_fresh_context(deadlines.set_current_deadline, 1.0)
    assert in_fresh_context(deadlines.current_deadline_s) is None


def test_any_time_left_is_at_least_one_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: 100.0)
    assert deadlines.remaining_ms(100.0001) == 1
    assert deadlines.remaining_ms(102.5) == 2500


def test_no_time_left_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: 100.0)
    assert deadlines.remaining_ms(100.0) == 0
    assert deadlines.remaining_ms(99.0) == 0
