"""What a message, or the end of a session, says of many calls reaches the owner of each of them.

The one guard between a session and those who own its calls: an owner that fails over one call ends
that call, and no other. On the connection's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from serve_grpc.caller.call import Call
from serve_grpc.config import LOGGER_NAME
from serve_grpc.errors import ServeGrpcError
from serve_grpc.foreign import run_foreign
from serve_grpc.protocol.caller import Received

__all__ = ["hand_out", "hand_out_lost"]

logger = logging.getLogger(LOGGER_NAME)


def hand_out(received: Received[Call]) -> list[Call]:
    """Tell owners what a message said of their calls.

    Returns:
        Those that were ended here because their owner failed; the session may still have them.
    """
    given_up = []
    for event in received.events:
        call = event.call
        if call.done:
            continue  # it was given up while the message was read
        try:
            call.place.owner.on_reply(call, event.kind, event.payload, event.error)
        except Exception as error:
            _give_up(call, error)
            given_up.append(call)
    # The last one first: each goes back to before those that were sent after it.
    for call in (*reversed(received.undelivered), *reversed(received.rejected)):
        if call.loan is not None:
            call.loan.came_back()
        _guard(call, lambda call: call.place.owner.on_rejected([call]))
    return given_up


def hand_out_lost(lost: Iterable[tuple[Call, bool]], reason: str) -> None:
    """Tell owners that their calls' session has ended, and whether each call may have started."""

    def tell(call: Call, may_have_started: bool) -> None:
        call.place.owner.on_lost(call, may_have_started=may_have_started, reason=reason)

    for call, may_have_started in lost:
        _guard(call, tell, may_have_started)


def _guard(call: Call, tell: Callable[..., None], *args: Any) -> None:
    if not call.done:
        try:
            tell(call, *args)
        except Exception as error:
            _give_up(call, error)


def _give_up(call: Call, error: Exception) -> None:
    run_foreign("log", logger.exception, "could not handle what came of %r", call)
    text = f"what came of the call could not be handled: {error!r}"
    request_id = call.fields.request_id
    call.fail(ServeGrpcError(text, request_id=request_id, may_have_executed=True))
