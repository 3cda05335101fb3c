"""What the caller of a request that failed is told, and what Serve's log and metrics get to know.

Two kinds of error: those that we made about this very request, and all that the user's code raised,
whatever its class; an error of ours that a handler raised, or got from a call of its own, is the
user's. Invariant: there is an outcome for every exception, those that cannot be shown too.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import message_from_exception
from serve_grpc.config import LOGGER_NAME
from serve_grpc.errors import DeadlineExceededError, ServeGrpcError
from serve_grpc.foreign import name_of, run_foreign
from serve_grpc.payload import with_refs
from serve_grpc.protocol.status import message_from_error
from serve_grpc.replica.inputs import InvalidRequestError
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome, Stage

__all__ = ["OutputError", "given_up", "outcome_of_error"]

logger = logging.getLogger(LOGGER_NAME)


class OutputError(Exception):
    """An error of ours about a result or an item of this request, made while its code ran."""

    def __init__(self, error: ServeGrpcError) -> None:
        super().__init__(error)
        self.error = error


def outcome_of_error(
    error: BaseException, invocation: Invocation, *, function_prefix: str, may_pickle: bool
) -> Outcome:
    """How a request ends whose code, or whose arguments or result, raised `error`.

    Args:
        error: What was raised.
        invocation: The request.
        function_prefix: Of the deployment, as Ray prints it.
        may_pickle: Whether a user's exception goes along.
    """
    try:
        # Only if we cancelled it: code may raise CancelledError of its own accord, or let one
        # through from a task that it cancelled itself. That one is the user's.
        if isinstance(error, asyncio.CancelledError) and invocation.cancel_reason is not None:
            return given_up(invocation, invocation.cancel_reason)
        if isinstance(error, OutputError):
            error = error.error
        elif invocation.stage is Stage.CALLED or not isinstance(error, ServeGrpcError):
            function_name = f"{function_prefix}.{invocation.method}"
            return _users(error, function_name, may_pickle=may_pickle)
        return _ours(error, invocation)
    except BaseException as reason:
        # Its `__str__`, `__reduce__` or metaclass is the user's code and may raise, SystemExit too.
        # Its caller is told so; an exception from here would leave it without an answer.
        return _cannot_be_shown(error, reason)


def given_up(invocation: Invocation, reason: CancelReason) -> Outcome:
    """How a request ends that its caller gave up, or whose deadline passed."""
    if reason is CancelReason.DEADLINE:
        return _ours(DeadlineExceededError("the deadline passed while the call ran"), invocation)
    return Outcome(
        error=Error(code=Error.CANCELLED, message="cancelled by the caller"),
        exception_type="CancelledError",
        status="CANCELLED",
    )


def _ours(error: ServeGrpcError, invocation: Invocation) -> Outcome:
    error.may_have_executed = invocation.stage is Stage.CALLED
    _log(error)
    message = message_from_error(error)
    if isinstance(error, InvalidRequestError):
        message.code = Error.INVALID_REQUEST
    return _failed(message, error)


def _users(error: BaseException, function_name: str, *, may_pickle: bool) -> Outcome:
    if isinstance(error, StopAsyncIteration):
        # As by reference, where Serve's generators meet it. At the caller it would end a loop over
        # the stream as if that were complete.
        stop, error = error, RuntimeError("async generator raised StopAsyncIteration")
        error.__cause__ = stop
    refs: list[Any] = []
    message = message_from_exception(error, function_name, may_pickle=may_pickle, refs=refs)
    outcome = _failed(message, error)
    outcome.payload = with_refs(b"", refs)
    if message.code == Error.CANCELLED:
        # The user's own CancelledError: Serve counts such a request as cancelled, and logs no
        # traceback (`_handle_errors_and_metrics` of its replica).
        outcome.status = "CANCELLED"
    else:
        _log(error)
    return outcome


def _cannot_be_shown(error: BaseException, reason: BaseException) -> Outcome:
    name, why = name_of(error), name_of(reason)
    message = Error(
        code=Error.USER_EXCEPTION,
        type_name=name,
        message=f"(the exception cannot be shown: {why})",
        may_have_executed=True,
    )
    run_foreign("log", logger.error, "Request failed: %s, which cannot be shown (%s).", name, why)
    return Outcome(error=message, exception_type=name, status="ERROR")


def _failed(message: Error, error: BaseException) -> Outcome:
    return Outcome(error=message, exception_type=name_of(error), status="ERROR")


def _log(error: BaseException) -> None:
    exc_info = (type(error), error, error.__traceback__)
    run_foreign("log", logger.error, "Request failed.", exc_info=exc_info)
