"""Errors as messages: what a replica says of a failed call, and what the caller raises for it.

The user's own exception is not rebuilt here (that takes Ray's classes: `_serve`), only our tree.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import DecodeError

from serve_grpc import errors
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.payload import joined
from serve_grpc.protocol.assembler import Assembler, PayloadOverflow

__all__ = [
    "error_from_message",
    "message_from_error",
    "read_error",
    "request_too_large",
    "shortened",
    "valid_text",
]

# With the traceback's 2,000 below 4 KiB, so a shortened error travels in one frame.
_SHORT_BYTES = {
    "type_name": 200,
    "message": 1_000,
    "serializer": 100,
    "direction": 100,
    "function_name": 200,
    "node_ip": 100,
}
SHORT_TRACEBACK_BYTES = 2_000


def valid_text(text: str) -> str:
    """`text` as protobuf takes it: without lone surrogates."""
    # Python makes them of file names that are no UTF-8 (`os.fsdecode`) and of JSON ("\ud800");
    # a field of type string raises when it is set to one.
    return text.encode("utf-8", "backslashreplace").decode()


class _FailedFrame(Protocol):
    """A reply, or an item of an input, that tells of an error."""

    @property
    def id(self) -> int: ...
    @property
    def error(self) -> Error: ...
    @property
    def payload(self) -> bytes: ...


def read_error(frame: _FailedFrame, assembler: Assembler) -> Error:
    """The error that a frame is about: inside it, or, where it is large, in fragments before it."""
    if frame.HasField("error"):  # type: ignore[attr-defined]
        return frame.error
    try:
        large: Error = Error.FromString(joined(assembler.take(frame.id, frame.payload)))
        return large
    except (DecodeError, PayloadOverflow) as reason:
        return Error(message=f"the peer's error cannot be read: {reason!r}", may_have_executed=True)


def request_too_large(size: int, limit: int) -> Error:
    """Arguments, or an item of an input, are over the limit; both in bytes."""
    return Error(code=Error.MESSAGE_TOO_LARGE, size=size, limit=limit, direction="request")


def shortened(error: Error) -> Error:
    """The error as text only, 4 KiB at most, without what may be of any size."""
    short = Error()
    short.CopyFrom(error)
    short.ClearField("pickled")
    for name, max_bytes in _SHORT_BYTES.items():
        text = getattr(short, name)
        # Cut as bytes, which is what the limit counts; half a character at the end is dropped.
        setattr(short, name, text.encode()[:max_bytes].decode(errors="ignore"))
    # Of a traceback the last lines say what happened.
    end = error.traceback.encode()[-SHORT_TRACEBACK_BYTES:]
    short.traceback = end.decode(errors="ignore")
    return short


def message_from_error(error: errors.ServeGrpcError) -> Error:
    """What a replica sends for an error of `serve_grpc.errors` that it made itself."""
    message = Error(
        code=Error.INTERNAL,
        type_name=type(error).__name__,
        message=valid_text(error.message),
        may_have_executed=error.may_have_executed,
    )
    if isinstance(error, errors.MessageTooLargeError):
        message.code = Error.MESSAGE_TOO_LARGE
        message.size, message.limit = error.size, error.limit
        message.direction = error.direction
    elif isinstance(error, errors.SerializationError):
        message.code = Error.SERIALIZATION
        message.serializer, message.direction = error.serializer, error.direction
    elif isinstance(error, errors.DeadlineExceededError):
        message.code = Error.DEADLINE_EXCEEDED
    return message


def error_from_message(
    message: Error, *, request_id: str, replica_id: str
) -> errors.ServeGrpcError:
    """The error a caller raises for `message`, which is not the user's own exception."""
    executed = message.may_have_executed
    if message.code == Error.MESSAGE_TOO_LARGE:
        return errors.MessageTooLargeError(
            message.size,
            message.limit,
            message.direction,
            request_id=request_id,
            replica_id=replica_id,
            may_have_executed=executed,
        )
    if message.code == Error.SERIALIZATION:
        return errors.SerializationError(
            f"in the replica: {message.message}",
            serializer=message.serializer,
            direction=message.direction,
            request_id=request_id,
            replica_id=replica_id,
            may_have_executed=executed,
        )
    # Any other code, of a newer replica too: proto3 keeps numbers that the enum has no name for.
    kind = (
        errors.DeadlineExceededError
        if message.code == Error.DEADLINE_EXCEEDED
        else errors.ReplicaError
    )
    return kind(
        message.message, request_id=request_id, replica_id=replica_id, may_have_executed=executed
    )
