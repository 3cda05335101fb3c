"""The line of waiting calls: first come, first served, also for calls that come back."""

from __future__ import annotations

import random
from dataclasses import dataclass

from serve_grpc.routing.line import Line


@dataclass
class Waits:
    sequence: int
    done: bool = False


def rest(row: Line[Waits]) -> list[int]:
    out = []
    while (call := row.pop()) is not None:
        out.append(call.sequence)
    return out


def test_calls_leave_in_the_order_they_came_in() -> None:
    row: Line[Waits] = Line()
    for number in range(5):
        row.add(Waits(number))
    assert (len(row), [call.sequence for call in row]) == (5, [0, 1, 2, 3, 4])
    assert rest(row) == [0, 1, 2, 3, 4]
    assert row.pop() is None


def test_a_call_that_comes_back_stands_where_it_stood() -> None:
    calls = [Waits(number) for number in range(20)]
    random.Random(1).shuffle(calls)
    row: Line[Waits] = Line()
    for call in calls:
        row.add(call)
    assert rest(row) == list(range(20))


def test_calls_that_ended_are_passed_over() -> None:
    row: Line[Waits] = Line()
    calls = [Waits(number) for number in range(4)]
    for call in calls:
        row.add(call)
    calls[0].done = calls[2].done = True
    assert row.head() is calls[1]
    assert rest(row) == [1, 3]
