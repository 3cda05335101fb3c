"""What ended a call, as a value: plain data, of a closed set of kinds.

Whoever ends a call says what happened and makes no exception of it: the loop that carries sessions
must not run the code of a user's exception, nor keep a traceback alive. `raising.exception_of`
makes one for each consumer, where it consumes. What Serve gave as an exception is carried as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    SerializationError,
)
from serve_grpc.payload import Payload, joined, refs_of
from serve_grpc.protocol.caller import CallEventKind

__all__ = [
    "KINDS",
    "Cancelled",
    "Expired",
    "GivenUp",
    "Lost",
    "NotRepeated",
    "Outcome",
    "Raised",
    "ReplicaFailed",
    "Result",
    "TooLarge",
    "Unavailable",
    "UserException",
    "Value",
    "kind_of",
    "last_word",
]

# In this order: a user's exception is a RayTaskError and may be of any other type beside that.
_KIND_OF: dict[type, str] = {
    RemoteException: "user_exception",
    RayTaskError: "user_exception",  # over Serve's own transport
    RequestCancelledError: "cancelled",
    DeadlineExceededError: "deadline_exceeded",
    BackPressureError: "back_pressure",
    DeploymentUnavailableError: "deployment_unavailable",
    ReplicaDiedError: "replica_died",
    ReplicaUnavailableError: "replica_unavailable",
    MessageTooLargeError: "message_too_large",
    SerializationError: "serialization",
}
KINDS = ("ok", *dict.fromkeys(_KIND_OF.values()), "error")
"""The tag `outcome` of the metric `serve_grpc_calls`."""

_KIND_OF_CODE = {
    Error.MESSAGE_TOO_LARGE: "message_too_large",
    Error.SERIALIZATION: "serialization",
    Error.DEADLINE_EXCEEDED: "deadline_exceeded",
}


def kind_of(error: BaseException) -> str:
    """The kind of an outcome that is an exception."""
    kind = type(error)
    for known, name in _KIND_OF.items():
        if issubclass(kind, known):
            return name
    return "error"


class Outcome:
    """Root of the set.

    Attributes:
        kind: One of `KINDS`; what is counted.
        is_ok: Whether there is a value, or a complete stream.
        may_have_executed: Whether the user's code may have run, in this try or an earlier one.
    """

    __slots__ = ("may_have_executed",)

    kind = "error"
    is_ok = False
    may_have_executed: bool

    @property
    def is_cancelled(self) -> bool:
        """Whether it was given up, or its code raised CancelledError."""
        return False


class Result(Outcome):
    """The replica's answer of a unary call as it came, or the end of a stream."""

    __slots__ = ("payload",)

    kind = "ok"
    is_ok = True

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __repr__(self) -> str:
        return f"Result({len(self.payload)} bytes)"


class Value(Outcome):
    """A value that needs no loading: of Serve's own transport. Also stands for an item of it."""

    __slots__ = ("value",)

    kind = "ok"
    is_ok = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return 0  # of unknown size, as far as flow control goes


@dataclass(slots=True, eq=False)
class UserException(Outcome):
    """The user's code raised; nothing of the exception is loaded yet."""

    remote: RemoteException
    may_have_executed: bool = True

    kind = "user_exception"


@dataclass(slots=True, eq=False)
class ReplicaFailed(Outcome):
    """The replica's machinery could not handle the call, as `error` of it says."""

    error: Error
    replica_id: str
    may_have_executed: bool = False

    @property
    def kind(self) -> str:  # type: ignore[override]
        """By the code."""
        return _KIND_OF_CODE.get(self.error.code, "error")


@dataclass(slots=True, eq=False)
class TooLarge(Outcome):
    """A request or a reply is over the limit. All sizes in bytes."""

    size: int
    limit: int
    direction: str
    replica_id: str = ""
    may_have_executed: bool = False

    kind = "message_too_large"


@dataclass(slots=True, eq=False)
class Lost(Outcome):
    """The session ended under the call, or before it could be sent.

    Attributes:
        actor_id: Of the replica, "" if not known.
        reason: Why the session ended.
        may_have_started: Whether this last try may have.
    """

    replica_id: str
    actor_id: str
    reason: str
    may_have_started: bool
    may_have_executed: bool = field(init=False)

    kind = "replica_died"

    def __post_init__(self) -> None:
        self.may_have_executed = self.may_have_started


@dataclass(slots=True, eq=False)
class NotRepeated(Outcome):
    """Its replica was lost, and no other one will come: Serve says so by `unavailable`."""

    unavailable: Exception
    may_have_executed: bool = True

    kind = "replica_died"


@dataclass(slots=True, eq=False)
class Unavailable(Outcome):
    """The one replica that the call may go to takes no calls, for this reason."""

    replica_id: str
    reason: str
    may_have_executed: bool = False

    kind = "replica_unavailable"


@dataclass(slots=True, eq=False)
class Expired(Outcome):
    """The deadline passed.

    Attributes:
        replica_id: Where the call was; "" if on none.
        trouble: Why it may still have waited; "" if that is not known.
    """

    replica_id: str = ""
    may_have_executed: bool = False
    trouble: str = ""

    kind = "deadline_exceeded"


@dataclass(slots=True, eq=False)
class Cancelled(Outcome):
    """It was given up, or its handler raised CancelledError."""

    may_have_executed: bool = False

    kind = "cancelled"

    @property
    def is_cancelled(self) -> bool:
        """Always: a handler that raised CancelledError counts as cancelled, too."""
        return True


@dataclass(slots=True, eq=False)
class GivenUp(Outcome):
    """No replica will be asked (any more), as `text` says."""

    text: str
    may_have_executed: bool = False


@dataclass(slots=True, eq=False)
class Raised(Outcome):
    """What Serve, Ray, or our own check of a request gave as an exception, carried as it is."""

    error: BaseException
    may_have_executed: bool = False

    @property
    def kind(self) -> str:  # type: ignore[override]
        """By the type."""
        return kind_of(self.error)

    @property
    def is_cancelled(self) -> bool:
        """Whether Serve or Ray cancelled it."""
        return isinstance(self.error, RequestCancelledError)


def last_word(
    kind: int,
    payload: Payload,
    error: Error | None,
    *,
    request_id: str,
    replica_id: str,
    max_message_bytes: int,
    may_unpickle: bool,
) -> Outcome:
    """What the last event of a call comes to.

    Args:
        kind, payload, error: As of `CallEvent`.
        request_id: Of the call.
        replica_id: Whose word it is.
        max_message_bytes: Limit of this side, for replies.
        may_unpickle: Whether an exception that came pickled may be loaded.
    """
    # Its payload is the size: `CallerSession` dropped what it had of the bytes themselves.
    if kind == CallEventKind.TOO_LARGE:
        return TooLarge(int(joined(payload)), max_message_bytes, "response", replica_id, True)
    if error is None:
        return Result(payload)  # of a unary call, or the end of a stream
    if error.code == Error.CANCELLED:
        return Cancelled()
    if error.code == Error.USER_EXCEPTION:
        return UserException(
            RemoteException(
                error, request_id=request_id, may_unpickle=may_unpickle, refs=refs_of(payload)
            )
        )
    return ReplicaFailed(error, replica_id)
