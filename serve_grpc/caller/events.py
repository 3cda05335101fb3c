"""What a message, or the end of a session, says of many calls reaches each of them.

The one guard between a session and the calls it carries: one that fails over its news is ended, and
the others of the message get theirs. What is logged goes through a guard as well, for a log's
handlers are not ours. On the connection's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.call import Call
from serve_grpc.caller.lending import Loan
from serve_grpc.caller.outcomes import GivenUp, Outcome
from serve_grpc.config import LOGGER_NAME
from serve_grpc.foreign import run_foreign
from serve_grpc.payload import Payload
from serve_grpc.protocol.caller import Received

__all__ = ["Carried", "hand_out", "hand_out_lost", "note"]

logger = logging.getLogger(LOGGER_NAME)


class Carried(Protocol):
    """What a session carries: a delivery. It hears nothing any more once its call has ended."""

    call: Call
    loan: Loan | None

    def on_reply(self, kind: int, payload: Payload, error: Error | None) -> None:
        """One event of the call; the kinds are those of `CallEventKind`."""

    def on_rejected(self) -> None:
        """The replica did not take the call; it did not start."""

    def on_lost(self, *, may_have_started: bool, reason: str) -> None:
        """The session ended under the call."""

    def on_input_news(self, number: int, items: int, bytes_: int, *, is_closed: bool) -> None:
        """The replica grants more of an input, or wants no more of it."""

    def end(self, outcome: Outcome) -> bool:
        """End the call; False if it had ended before."""


def hand_out(received: Received[Carried]) -> list[Carried]:
    """Tell calls what a message said of them.

    Returns:
        Those that were ended here because they failed; the session may still have them.
    """
    given_up = []
    carried: Carried
    for carried, kind, payload, error in received.events:
        # Not by `_guard`: that is a function call more for each reply, and who failed is returned.
        try:
            carried.on_reply(kind, payload, error)
        except Exception as fault:
            _give_up(carried, fault)
            given_up.append(carried)
    for news in received.inputs:
        told = {"number": news.number, "items": news.items, "bytes_": news.bytes_}
        _guard(news.call, news.call.on_input_news, **told, is_closed=news.is_closed)
    if received.undelivered or received.rejected:
        # The last one first: each goes back to before those that were sent after it.
        for carried in (*reversed(received.undelivered), *reversed(received.rejected)):
            _guard(carried, carried.on_rejected)
    return given_up


def hand_out_lost(lost: Iterable[tuple[Carried, bool]], reason: str) -> None:
    """Tell calls that their session has ended, and whether each may have started."""
    # In any order: a call that waits again finds its place by its sequence number.
    for carried, may_have_started in lost:
        _guard(carried, carried.on_lost, may_have_started=may_have_started, reason=reason)


def _guard(carried: Carried, tell: Callable[..., None], **what: Any) -> None:
    try:
        tell(**what)
    except Exception as error:
        _give_up(carried, error)


def _give_up(carried: Carried, error: Exception) -> None:
    # By `run_foreign`: a log handler that raises must not keep the call from its end.
    run_foreign("log", logger.exception, "could not handle what came of %r", carried)
    text = f"what came of the call could not be handled: {error!r}"
    # It may have: what came was mostly an answer, and it is we who failed over it.
    carried.end(GivenUp(text, may_have_executed=True))


def note(text: str, *args: object) -> None:
    """Log a debug line, as `text % args`; only if `debugging.is_debugged`."""
    run_foreign("log", logger.debug, text, *args, stacklevel=3)  # of who notes it
