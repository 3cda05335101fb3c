"""What a call is told when it cannot be sent, when a reply arrives, and when its replica is lost.

Shared by those who own calls: the router, and the calls that Serve's own router places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException
from serve_grpc.allow_list import AllowList, check_call, takes_pickle
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.deadlines import remaining_ms
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaDiedError,
    ServeGrpcError,
)
from serve_grpc.payload import Payload, joined, refs_of
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.protocol.status import error_from_message

__all__ = [
    "FAILURES",
    "end_with_reply",
    "expired",
    "fail",
    "fail_for_good",
    "is_refused",
    "replica_died",
    "send",
]

FAILURES = (Error.USER_EXCEPTION, Error.INTERNAL)
"""Errors that tell against the replica that gives them."""


def fail(call: Call, error: ServeGrpcError) -> None:
    """End the call with an error of ours."""
    error.request_id = call.fields.request_id
    call.fail(error)


def is_refused(call: Call, process: AllowList, deployment: AllowList, name: str) -> bool:
    """Fail a call whose serializers are not allowed; before its arguments are serialized.

    Args:
        call: Not sent yet.
        process, deployment: What this process and, as far as is known, the replicas take.
        name: Of the deployment.
    """
    if process is None and deployment is None:
        return False
    envelope = call.fields.envelope
    names = envelope.request_serializer, envelope.response_serializer
    try:
        check_call(*names, process=process, deployment=deployment, name=name)
    except ServeGrpcError as error:
        fail(call, error)
        return True
    return False


def fail_for_good(call: Call, unavailable: Exception) -> None:
    """End a call that no replica will take any more, as Serve's error says.

    That error promises that the call did not start; one that was lost before gets another.
    """
    if not call.may_have_executed:
        call.fail(unavailable)
        return
    text = "its replica was lost before the call ended, and none will repeat it"
    fail(call, ReplicaDiedError(f"{text}: {unavailable}"))


def send(call: Call, connection: Connection, *, is_new: bool = False) -> int:
    """Queue a call on a connection that takes it; returns its id there.

    Raises:
        ServeGrpcError: It cannot be sent, to no replica: its deadline passed, it is too large, a
            text of it is not valid, or its serializers are refused. Nothing was queued.
    """
    fields = call.fields
    if connection.peer.facts.serializers is not None:
        connection.check_serializers(fields.envelope)
    if call.deadline_s is not None:
        fields.timeout_ms = remaining_ms(call.deadline_s)
        if fields.timeout_ms == 0:
            raise expired("", may_have_executed=False)
    size, limit = len(fields.payload), connection.peer_max_message_bytes
    if size > limit:
        raise MessageTooLargeError(size, limit, "request")
    try:
        return connection.send(call, is_new=is_new)
    except ValueError as error:
        raise ServeGrpcError(f"the call cannot be sent: {error}") from error


def end_with_reply(
    call: Call,
    kind: int,
    payload: Payload,
    error: Error | None,
    *,
    connection: Connection,
    max_message_bytes: int,
) -> None:
    """End the call as the last event of it says."""
    replica_id = connection.peer.facts.replica_id
    if kind == CallEventKind.ERROR:
        assert error is not None
        call.fail(_failure(error, call.fields.request_id, connection, refs_of(payload)))
    elif kind == CallEventKind.TOO_LARGE:
        too_large = MessageTooLargeError(int(joined(payload)), max_message_bytes, "response")
        too_large.replica_id, too_large.may_have_executed = replica_id, True
        fail(call, too_large)
    else:
        call.succeed(payload)


def _failure(
    error: Error, request_id: str, connection: Connection, refs: Sequence[Any]
) -> BaseException | RemoteException:
    if error.code == Error.CANCELLED:
        cancelled: BaseException = RequestCancelledError(request_id)
        return cancelled
    if error.code == Error.USER_EXCEPTION:
        may_unpickle = takes_pickle(connection.serializers)
        return RemoteException(error, request_id=request_id, may_unpickle=may_unpickle, refs=refs)
    replica_id = connection.peer.facts.replica_id
    return error_from_message(error, request_id=request_id, replica_id=replica_id)


def expired(
    replica_id: str, *, may_have_executed: bool, trouble: str = ""
) -> DeadlineExceededError:
    """The deadline passed; `replica_id` is "" for a call that was on none.

    Args:
        replica_id, may_have_executed: As of the error.
        trouble: Why the call may still have waited; "" if that is not known.
    """
    return DeadlineExceededError(
        "the deadline passed before the call ended" + (f"; {trouble}" if trouble else ""),
        replica_id=replica_id,
        may_have_executed=may_have_executed,
    )


def replica_died(
    connection: Connection, reason: str, *, may_have_started: bool
) -> ReplicaDiedError:
    """The session ended under the call."""
    facts = connection.peer.facts
    return ReplicaDiedError(
        f"replica {facts.replica_id} was lost before the call ended ({reason}); "
        + ("it may have started" if may_have_started else "it had not started"),
        replica_id=facts.replica_id,
        may_have_executed=may_have_started,
        actor_id=facts.actor_id or None,
    )
