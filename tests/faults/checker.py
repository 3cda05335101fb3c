"""Joins what handlers really executed with what their callers saw.

A caller sees one of three outcomes: ok, failed (the handler's own error, or one that says that the
call did not start), or unknown (an error that says the call may have executed, or leaves it open).
Anything else is a hung call. `check` counts what must never be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_grpc.errors import ServeGrpcError
from tests.ray.apps.gated import Board

__all__ = ["NOTHING_WRONG", "Outcome", "Wrongs", "check"]


NOT_STARTED = (BackPressureError, DeploymentUnavailableError)
"""Errors of Serve's that mean it."""


@dataclass(frozen=True)
class Outcome:
    """What one caller saw.

    Attributes:
        value: The result; the items of a stream, also of one that failed.
        error: What was raised.
        ended_s: When, on the monotonic clock; None for a call that hung.
    """

    name: str
    value: Any = None
    error: BaseException | None = None
    ended_s: float | None = None

    @property
    def kind(self) -> str:
        """ "ok", "failed", "unknown" or "hung"."""
        if self.ended_s is None:
            return "hung"
        if self.error is None:
            return "ok"
        if isinstance(self.error, RayTaskError):
            return "failed"
        return "failed" if self.says_it_did_not_start else "unknown"

    @property
    def says_it_did_not_start(self) -> bool:
        """Whether the error promises that."""
        if isinstance(self.error, ServeGrpcError):
            return not self.error.may_have_executed
        return isinstance(self.error, NOT_STARTED)


@dataclass(frozen=True)
class Wrongs:
    """Names of calls for each thing that must not happen.

    Attributes:
        hung: No outcome.
        duplicate: Started more than once.
        lost: Reported as ok, but no handler ran to its end.
        misdelivered: Got what was meant for another call, or a part as if it were all.
        untruthful: The error says that the call did not start, but it did.
        foreign: An error that is not one of the documented ones.
    """

    hung: tuple[str, ...] = ()
    duplicate: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    misdelivered: tuple[str, ...] = ()
    untruthful: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {field.name: len(getattr(self, field.name)) for field in fields(self)}


NOTHING_WRONG = Wrongs()


def check(
    board: Board,
    outcomes: Iterable[Outcome],
    *,
    may_repeat: bool = False,
    documented: tuple[type[BaseException], ...] = (ServeGrpcError,),
    items: int = 0,
) -> Wrongs:
    """Compare the handlers' notes with the outcomes of `Journaled` calls.

    Args:
        board: Where handlers of these calls, and of no others, took notes.
        outcomes: One for each call.
        may_repeat: Whether the calls were idempotent, so that they may have started again.
        documented: Errors that a call may end with here.
        items: How many each stream has.
    """
    outcomes = list(outcomes)
    starts = Counter(name for _, name, *_ in board.lines("start"))
    ends = Counter(name for _, name, *_ in board.lines("end"))
    failed = [o for o in outcomes if o.error is not None]
    return Wrongs(
        hung=tuple(o.name for o in outcomes if o.kind == "hung"),
        duplicate=() if may_repeat else tuple(name for name, n in starts.items() if n > 1),
        lost=tuple(o.name for o in outcomes if o.kind == "ok" and not ends[o.name]),
        misdelivered=tuple(o.name for o in outcomes if not _is_own(o, items)),
        untruthful=tuple(o.name for o in failed if o.says_it_did_not_start and starts[o.name]),
        foreign=tuple(o.name for o in failed if not isinstance(o.error, documented)),
    )


def _is_own(outcome: Outcome, items: int) -> bool:
    got = outcome.value
    if isinstance(got, list):  # in order from the first, and all of them unless there is an error
        is_in_order = got == [f"{outcome.name}/{i}" for i in range(len(got))]
        return is_in_order and (outcome.kind != "ok" or len(got) == items)
    return outcome.kind != "ok" or bool(got == outcome.name)
