"""Errors of Ray Serve's own gRPC transport, as errors of ours."""

from __future__ import annotations

import grpc
import pytest

from serve_grpc.carriers.grpc.serves_errors import as_documented
from serve_grpc.errors import MessageTooLargeError, ReplicaError


def error_of(code, details):
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details=details)


@pytest.mark.parametrize(
    ("side", "direction", "may_have_executed"),
    [
        ("CLIENT: Sent", "request", False),
        ("SERVER: Received", "request", False),
        ("SERVER: Sent", "response", True),
        ("CLIENT: Received", "response", True),
        ("Received", "request", True),  # older gRPC: the response may be meant
    ],
)
def test_a_message_over_grpcs_limit(side, direction, may_have_executed):
    details = f"{side} message larger than max (5242915 vs. 4194304)"
    ours = as_documented(error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
    assert isinstance(ours, MessageTooLargeError)
    assert (ours.size, ours.limit, ours.direction) == (5242915, 4194304, direction)
    assert ours.may_have_executed is may_have_executed


@pytest.mark.parametrize("details", ["out of memory", "", None])
def test_any_other_error_may_have_executed(details):
    for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN):
        ours = as_documented(error_of(code, details))
        assert type(ours) is ReplicaError
        assert code.name in str(ours)
        assert ours.may_have_executed


def test_errors_that_are_not_grpcs_are_left_alone():
    assert as_documented(ValueError("the user's own")) is None
