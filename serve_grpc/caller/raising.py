"""What consumers raise for a call that did not end well, made of its outcome.

Runs in the consumer's thread or task, never on the loop that carries sessions: building the user's
exception imports modules and runs whatever its pickle says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.caller.outcomes import (
    Cancelled,
    Expired,
    GivenUp,
    Lost,
    NotRepeated,
    Outcome,
    Raised,
    ReplicaFailed,
    TooLarge,
    Unavailable,
    UserException,
)
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    ServeGrpcError,
)
from serve_grpc.foreign import another
from serve_grpc.protocol.status import error_from_message

__all__ = ["exception_of", "replica_died"]


def exception_of(outcome: Outcome, request_id: str) -> BaseException:
    """The exception of a call that failed, a new one each time.

    Args:
        outcome: Of the call; not one that `is_ok`.
        request_id: Of the call.

    Returns:
        Where it is the user's, its module may have had to be imported.
    """
    error: BaseException = _MAKE[type(outcome)](outcome, request_id)
    # One of ours that is a RayTaskError is the user's, of a call that an argument is of.
    if isinstance(error, ServeGrpcError) and not isinstance(error, RayTaskError):
        # The last try did not start, but an earlier one may have.
        error.may_have_executed |= outcome.may_have_executed
    return error


def replica_died(lost: Lost, request_id: str) -> ReplicaDiedError:
    """The session ended under the call."""
    return ReplicaDiedError(
        f"replica {lost.replica_id} was lost before the call ended ({lost.reason}); "
        + ("it may have started" if lost.may_have_started else "it had not started"),
        request_id=request_id,
        replica_id=lost.replica_id,
        may_have_executed=lost.may_have_started,
        actor_id=lost.actor_id or None,
    )


def _not_repeated(outcome: NotRepeated, request_id: str) -> BaseException:
    # Serve's own error promises that the call did not start; one that was lost gets another.
    text = "its replica was lost before the call ended, and none will repeat it"
    return ReplicaDiedError(f"{text}: {outcome.unavailable}", request_id=request_id)


def _unavailable(outcome: Unavailable, request_id: str) -> BaseException:
    return ReplicaUnavailableError(
        f"replica {outcome.replica_id} is not available: {outcome.reason}; "
        "the call is bound to it and did not start",
        request_id=request_id,
        replica_id=outcome.replica_id,
    )


def _expired(outcome: Expired, request_id: str) -> BaseException:
    return DeadlineExceededError(
        "the deadline passed before the call ended"
        + (f"; {outcome.trouble}" if outcome.trouble else ""),
        request_id=request_id,
        replica_id=outcome.replica_id,
        may_have_executed=outcome.may_have_executed,
    )


def _too_large(outcome: TooLarge, request_id: str) -> BaseException:
    return MessageTooLargeError(
        outcome.size,
        outcome.limit,
        outcome.direction,
        request_id=request_id,
        replica_id=outcome.replica_id,
    )


def _cancelled(_: Cancelled, request_id: str) -> BaseException:
    error: BaseException = RequestCancelledError(request_id)
    return error


_MAKE: dict[type[Outcome], Callable[[Any, str], BaseException]] = {
    UserException: lambda outcome, _: outcome.remote.load(),
    ReplicaFailed: lambda outcome, request_id: error_from_message(
        outcome.error, request_id=request_id, replica_id=outcome.replica_id
    ),
    TooLarge: _too_large,
    Lost: replica_died,
    NotRepeated: _not_repeated,
    Unavailable: _unavailable,
    Expired: _expired,
    Cancelled: _cancelled,
    GivenUp: lambda outcome, request_id: ServeGrpcError(outcome.text, request_id=request_id),
    Raised: lambda outcome, _: another(outcome.error),
}
