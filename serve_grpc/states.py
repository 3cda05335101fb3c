"""Tables of legal moves, for the state of a session and of a replica.

A state machine writes its table at the head of its file and moves by `check_move` alone. A move
that the table does not have is a fault of ours: it raises in tests, where nothing else should
happen, and is logged in production, where one wrong state must not end the calls that run there.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from typing import TypeVar

from serve_grpc.config import LOGGER_NAME, settings
from serve_grpc.foreign import run_foreign

__all__ = ["IllegalMoveError", "Moves", "check_move", "log_move"]

logger = logging.getLogger(LOGGER_NAME)

StateT = TypeVar("StateT", bound=enum.Enum)

Moves = Mapping[StateT, frozenset[StateT]]
"""To which states each state may move; staying is no move."""


class IllegalMoveError(AssertionError):
    """A state machine was about to make a move that its table does not have."""


def check_move(moves: Moves[StateT], of: object, before: StateT, after: StateT) -> None:
    """Look a move up.

    Args:
        moves: The table.
        of: Whose state it is, for the text.
        before, after: The states.

    Raises:
        IllegalMoveError: It is not there, and `SERVE_GRPC_STRICT_STATES` is set.
    """
    if after is before or after in moves[before]:
        return
    text = f"illegal move of {of!r}: {before.name} to {after.name}"
    if settings.strict_states:
        raise IllegalMoveError(text)
    logger.error(text)


def log_move(who: str, before: StateT, after: StateT, why: str = "") -> None:
    """Write a debug line about a move that was made.

    Args:
        who: Whose state it is, as an operator would search for it.
        before, after: The states.
        why: What led to it; "" if the states say it all.
    """
    if logger.isEnabledFor(logging.DEBUG):
        # The log's handlers may be the user's: what they raise must not end the change that is
        # being made here.
        text, because = "%s: %s to %s%s", why and f" ({why})"
        run_foreign("log", logger.debug, text, who, before.value, after.value, because)
