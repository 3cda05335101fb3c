"""Whether a deployment still has all of its slots, once calls that held them are gone."""

from __future__ import annotations

from typing import Any

from tests.faults.calls import SETTLE_S, LoopThread, outcomes_of
from tests.ray.apps.gated import Board
from tests.ray.apps.troubled import times

__all__ = ["has_all_slots"]


def has_all_slots(handle: Any, board: Board, callers: LoopThread, slots: int) -> bool:
    """Whether so many calls run at once, and succeed.

    Args:
        handle: Of one replica, which is a `Journaled`.
        board: Where it may take notes, of calls "slot0", ...
        callers: Where the calls are made.
        slots: How many it had.
    """
    names = [f"slot{i}" for i in range(slots)]
    running = callers.start(
        outcomes_of((n, lambda n=n: handle.remote(board.path, n, 1.5)) for n in names)
    )
    outcomes = running.result(SETTLE_S)
    started, ended = times(board, "start"), times(board, "end")
    was_full = max(started[n] for n in names) < min(ended[n] for n in names)
    return was_full and all(o.kind == "ok" for o in outcomes)
