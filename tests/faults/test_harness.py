"""The suite's own tools: the checker sees each wrong, and the table is written where it belongs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_grpc.errors import DeadlineExceededError, ReplicaDiedError
from tests.faults.checker import NOTHING_WRONG, Outcome, Wrongs, check
from tests.faults.figures import Figure
from tests.faults.page import PAGE, rendered, with_table
from tests.ray.apps.gated import Board, note

HERE = Path(__file__).parent
DIED = ReplicaDiedError("lost", may_have_executed=True)
NOT_STARTED = ReplicaDiedError("lost", may_have_executed=False)


def notes(board, *events):
    for event in events:
        note(board.path, event, "x", 1)


@pytest.mark.parametrize(
    ("events", "outcome", "wrong"),
    [
        (("start", "end"), Outcome("x", "x", ended_s=1), Wrongs()),
        (("start",), Outcome("x"), Wrongs(hung=("x",))),
        (("start", "start", "end"), Outcome("x", "x", ended_s=1), Wrongs(duplicate=("x",))),
        (("start",), Outcome("x", "x", ended_s=1), Wrongs(lost=("x",))),
        (("start", "end"), Outcome("x", "y", ended_s=1), Wrongs(misdelivered=("x",))),
        (("start", "end"), Outcome("x", ["x/0"], ended_s=1), Wrongs(misdelivered=("x",))),
        (("start", "end"), Outcome("x", ["x/0", "x/1"], ended_s=1), Wrongs()),
        (("start",), Outcome("x", ["x/0"], DIED, 1), Wrongs()),
        (("start",), Outcome("x", ["x/1"], DIED, 1), Wrongs(misdelivered=("x",))),
        (("start",), Outcome("x", None, NOT_STARTED, 1), Wrongs(untruthful=("x",))),
        ((), Outcome("x", None, NOT_STARTED, 1), Wrongs()),
        ((), Outcome("x", None, KeyError(), 1), Wrongs(foreign=("x",))),
    ],
)
def test_the_checker_sees_what_is_wrong(tmp_path, events, outcome, wrong):
    board = Board(tmp_path)
    notes(board, *events)
    assert check(board, [outcome], items=2) == wrong
    assert (check(board, [outcome], items=2) == NOTHING_WRONG) is (wrong == Wrongs())


def test_kinds_of_outcomes():
    def kind(error):
        return Outcome("x", error=error, ended_s=1).kind

    assert kind(None) == "ok"
    assert Outcome("x").kind == "hung"
    assert kind(DIED) == "unknown"
    assert kind(NOT_STARTED) == "failed"
    assert kind(DeadlineExceededError("late", may_have_executed=True)) == "unknown"
    assert kind(BackPressureError(num_queued_requests=1, max_queued_requests=1)) == "failed"
    assert kind(RequestCancelledError("id")) == "unknown"


def test_the_table_is_written_between_its_marks():
    figures = [
        Figure(2, "b", "w", "0", "0", "test_b.py::t"),
        Figure(1, "a", "w", "0", "0", "test_a.py::t"),
        Figure(1, "a", "w", "0", "0", "test_a.py::u"),
        Figure(1, "a", "v", "0", "1", "test_a.py::u"),
    ]
    table = rendered("2 cores", figures)
    assert [line.split(" | ")[:3] for line in table.splitlines()[4:]] == [
        ["| 1", "a", "w"],
        ["| 1", "", "v"],
        ["| 2", "b", "w"],
    ]
    page = PAGE.read_text()
    assert with_table(with_table(page, "another"), table) == with_table(page, table)
    with pytest.raises(ValueError, match="lacks"):
        with_table("no marks", table)


def test_the_page_names_tests_that_exist():
    named = set(re.findall(r"\.\./tests/faults/(test_\w+\.py)", PAGE.read_text()))
    assert named <= {file.name for file in HERE.glob("test_*.py")}
    assert named


def test_each_promise_names_rows_that_were_run():
    promises = PAGE.with_name("reliability.md").read_text()
    rows = re.findall(r"\| ([\d, ]+) \|$", promises, flags=re.MULTILINE)
    run = set(re.findall(r"^\| (\d+) \|", PAGE.read_text(), flags=re.MULTILINE))
    assert len(rows) > 10
    assert {number for cell in rows for number in cell.split(", ")} <= run
