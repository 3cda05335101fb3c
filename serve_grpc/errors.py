"""Every error this package raises, as one tree.

    ServeGrpcError                  (RayServeException)
    ├── ObjectRefNotSupportedError  (RuntimeError)   an ObjectRef was asked of a by-value response
    ├── MessageTooLargeError        (ValueError)     a request, response or item is over the limit
    ├── SerializationError          (TypeError)      a value does not fit the serializer
    ├── ReplicaDiedError            (RayActorError)  the replica was lost with the call on it
    ├── ReplicaUnavailableError     (Serve's own)    the one replica of a bound call takes none
    ├── DeadlineExceededError       (TimeoutError)   `timeout_s` passed
    ├── RequestStreamError                           a stream among a handler's arguments failed
    └── ReplicaError                                 the replica could not handle the call

Ray Serve's own `BackPressureError`, `RequestCancelledError` and `DeploymentUnavailableError` keep
their types, and the user's exception arrives as a `RayTaskError` that is also of its own type.
No error of gRPC reaches a user.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.exceptions import ReplicaUnavailableError as ServesReplicaUnavailableError

__all__ = [
    "DeadlineExceededError",
    "MessageTooLargeError",
    "ObjectRefNotSupportedError",
    "ReplicaDiedError",
    "ReplicaError",
    "ReplicaUnavailableError",
    "RequestStreamError",
    "SerializationError",
    "ServeGrpcError",
]


class ServeGrpcError(RayServeException):
    """Root of the tree.

    Attributes:
        request_id: Ray Serve's id of the request, or "" where there is none.
        replica_id: Unique id of the replica the call was on, or "".
        may_have_executed: Whether the user's code may have run; a call with False can be repeated
            without harm.
    """

    request_id: str
    replica_id: str
    may_have_executed: bool

    def __init__(
        self,
        message: str,
        *,
        request_id: str = "",
        replica_id: str = "",
        may_have_executed: bool = False,
    ) -> None:
        # Each class is also a built-in or Ray error whose constructor differs, so the message is
        # set on Exception itself and the fields on the instance.
        Exception.__init__(self, message)
        self.message = message
        self.request_id = request_id
        self.replica_id = replica_id
        self.may_have_executed = may_have_executed

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(kind: type[ServeGrpcError], fields: dict[str, Any]) -> ServeGrpcError:
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    error.args = (fields["message"],)
    return error


class ObjectRefNotSupportedError(ServeGrpcError, RuntimeError):
    """A by-value response has no `ObjectRef`; raised at once, without waiting for the call."""

    def __init__(self, method: str, *, request_id: str = "") -> None:
        super().__init__(
            f"`{method}` needs a response by reference, but this call travels by value over gRPC. "
            "Make the call on `handle.options(_by_reference=True)` to get an ObjectRef, or use "
            "`ray.put(await response)`.",
            request_id=request_id,
            may_have_executed=True,
        )


class MessageTooLargeError(ServeGrpcError, ValueError):
    """A serialized request, response or stream item is over the limit. Only its call fails.

    Attributes:
        size: Bytes of the serialized value.
        limit: Bytes allowed.
        direction: "request" or "response".
    """

    def __init__(
        self,
        size: int,
        limit: int,
        direction: str,
        *,
        request_id: str = "",
        replica_id: str = "",
        may_have_executed: bool = False,
    ) -> None:
        super().__init__(
            f"the serialized {direction} of {size} bytes is over the limit of {limit} bytes. "
            "Raise RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, or pass large objects through Ray's "
            "object store: with `handle.options(_by_reference=True)`, or, requests and results "
            "only, with SERVE_GRPC_OVERSIZE=by_reference at caller and replica.",
            request_id=request_id,
            replica_id=replica_id,
            may_have_executed=may_have_executed,
        )
        self.size = size
        self.limit = limit
        self.direction = direction


class SerializationError(ServeGrpcError, TypeError):
    """A value could not be serialized or deserialized.

    Attributes:
        serializer: Name of the serializer.
        direction: "request" or "response".
    """

    def __init__(
        self,
        message: str,
        *,
        serializer: str,
        direction: str,
        request_id: str = "",
        replica_id: str = "",
        may_have_executed: bool = False,
    ) -> None:
        super().__init__(
            message,
            request_id=request_id,
            replica_id=replica_id,
            may_have_executed=may_have_executed,
        )
        self.serializer = serializer
        self.direction = direction


class ReplicaDiedError(ServeGrpcError, RayActorError):
    """The replica, or the connection to it, was lost before the call ended."""

    def __init__(
        self,
        message: str,
        *,
        request_id: str = "",
        replica_id: str = "",
        may_have_executed: bool = True,
        actor_id: str | None = None,
    ) -> None:
        super().__init__(
            message,
            request_id=request_id,
            replica_id=replica_id,
            may_have_executed=may_have_executed,
        )
        # The fields RayActorError's own methods read.
        self.actor_id = actor_id
        self.error_msg = message
        self._actor_init_failed = False
        self._preempted = False


class ReplicaUnavailableError(ServeGrpcError, ServesReplicaUnavailableError):
    """The replica that a call is bound to is not there, or takes no new calls; it did not start."""

    message = ""  # of each error; Serve's class has a property here, which could not be set


class DeadlineExceededError(ServeGrpcError, TimeoutError):
    """`timeout_s` passed before the call ended."""


class RequestStreamError(ServeGrpcError):
    """A stream that a handler has as an argument failed at the caller, before its end.

    Attributes:
        cause: What the caller's generator raised; also `__cause__`. If it could not be sent, an
            error that tells of it. `asyncio.CancelledError` if the generator was cancelled.
    """

    def __init__(
        self, message: str, *, cause: BaseException, request_id: str = "", replica_id: str = ""
    ) -> None:
        super().__init__(
            message, request_id=request_id, replica_id=replica_id, may_have_executed=True
        )
        self.cause = self.__cause__ = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_with_cause, (type(self), self.__dict__.copy())


def _rebuild_with_cause(kind: type[ServeGrpcError], fields: dict[str, Any]) -> ServeGrpcError:
    error = _rebuild(kind, fields)
    error.__cause__ = fields["cause"]
    return error


class ReplicaError(ServeGrpcError):
    """The replica's machinery, not the user's code, could not handle the call."""
