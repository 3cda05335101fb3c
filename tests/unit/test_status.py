"""Errors as messages: what is sent for each of our errors, and what the caller raises for it."""

from __future__ import annotations

import pytest

from serve_grpc import errors
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.protocol.status import error_from_message, message_from_error

CASES = [
    (errors.MessageTooLargeError(11, 10, "response"), Error.MESSAGE_TOO_LARGE),
    (errors.MessageTooLargeError(11, 10, "request"), Error.MESSAGE_TOO_LARGE),
    (
        errors.SerializationError("no int here", serializer="orjson", direction="request"),
        Error.SERIALIZATION,
    ),
    (errors.DeadlineExceededError("too late"), Error.DEADLINE_EXCEEDED),
    (errors.ReplicaError("broken"), Error.INTERNAL),
]
every_case = pytest.mark.parametrize(
    ("error", "code"), CASES, ids=lambda value: type(value).__name__
)


def there_and_back(error: errors.ServeGrpcError) -> errors.ServeGrpcError:
    data = message_from_error(error).SerializeToString()
    return error_from_message(Error.FromString(data), request_id="req", replica_id="rep")


@every_case
def test_each_error_has_its_code_and_keeps_its_type(
    error: errors.ServeGrpcError, code: Error.Code
) -> None:
    assert message_from_error(error).code == code
    assert type(there_and_back(error)) is type(error)


@every_case
def test_the_text_survives(error: errors.ServeGrpcError, code: Error.Code) -> None:
    assert error.message in str(there_and_back(error))


@every_case
def test_the_caller_adds_where_it_happened(error: errors.ServeGrpcError, code: Error.Code) -> None:
    back = there_and_back(error)
    assert (back.request_id, back.replica_id) == ("req", "rep")


@every_case
@pytest.mark.parametrize("executed", [True, False])
def test_whether_it_may_have_executed_is_carried(
    error: errors.ServeGrpcError, code: Error.Code, executed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error, "may_have_executed", executed)
    assert there_and_back(error).may_have_executed is executed


def test_fields_of_a_size_error_survive() -> None:
    back = there_and_back(errors.MessageTooLargeError(11, 10, "response"))
    assert (back.size, back.limit, back.direction) == (11, 10, "response")


def test_fields_of_a_serialization_error_survive_and_name_the_side() -> None:
    error = errors.SerializationError("bad", serializer="orjson", direction="response")
    back = there_and_back(error)
    assert (back.serializer, back.direction) == ("orjson", "response")
    assert "in the replica" in str(back)


@pytest.mark.parametrize(
    "code", [Error.INTERNAL, Error.INVALID_REQUEST, Error.OVERLOADED, Error.DRAINING, 999]
)
def test_any_other_code_is_an_error_of_the_replica(code: int) -> None:
    back = error_from_message(Error(code=code, message="why"), request_id="req", replica_id="rep")
    assert type(back) is errors.ReplicaError
    assert (str(back), back.may_have_executed) == ("why", False)


def test_text_that_is_no_valid_unicode_does_not_stop_an_error() -> None:
    back = there_and_back(errors.ReplicaError("bad name: \udcff"))
    assert "bad name" in str(back)
