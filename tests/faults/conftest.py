"""Fixtures of the fault suite, and the file its figures go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import figures
from tests.faults.calls import LoopThread, loop_thread
from tests.ray.apps.gated import Board
from tests.ray.conftest import deploy  # noqa: F401


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Where the handlers of one test take notes."""
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture
def callers() -> Iterator[LoopThread]:
    """A loop for callers."""
    with loop_thread() as thread:
        yield thread


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`measured(row, fault, what, required, value)`: write down a figure of this test."""

    def measured(row: int, fault: str, what: str, required: str, value: object) -> None:
        test = f"{request.path.name}::{request.node.originalname}"
        figures.record(figures.Figure(row, fault, what, required, str(value), test))

    return measured
