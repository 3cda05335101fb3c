"""Tables of legal moves: what is not in them raises in tests, and is logged in production."""

from __future__ import annotations

import dataclasses
import enum

import pytest

from serve_grpc import states
from serve_grpc.states import IllegalMoveError, Moves, check_move


class Door(enum.Enum):
    OPEN = "open"
    SHUT = "shut"
    GONE = "gone"


MOVES: Moves[Door] = {
    Door.OPEN: frozenset({Door.SHUT, Door.GONE}),
    Door.SHUT: frozenset({Door.OPEN, Door.GONE}),
    Door.GONE: frozenset(),
}


def test_moves_of_the_table_and_staying_are_legal() -> None:
    for before in Door:
        for after in (before, *MOVES[before]):
            check_move(MOVES, "the door", before, after)


def test_in_tests_an_illegal_move_raises() -> None:
    with pytest.raises(IllegalMoveError, match="illegal move of 'the door': GONE to OPEN"):
        check_move(MOVES, "the door", Door.GONE, Door.OPEN)


def test_in_production_an_illegal_move_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    production = dataclasses.replace(states.settings, strict_states=False)
    monkeypatch.setattr(states, "settings", production)
    check_move(MOVES, "the door", Door.GONE, Door.OPEN)
    assert [r.getMessage() for r in caplog.records] == ["illegal move of 'the door': GONE to OPEN"]
