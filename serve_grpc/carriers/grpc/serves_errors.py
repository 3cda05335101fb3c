"""Errors of gRPC calls that are not ours: those of Ray Serve's own transport, as errors of ours."""

from __future__ import annotations

import re

import grpc

from serve_grpc.errors import MessageTooLargeError, ReplicaError, ServeGrpcError

__all__ = ["as_documented"]

# "CLIENT: Received message larger than max (5242915 vs. 4194304)"; older gRPC names no side.
_TOO_LARGE = re.compile(
    r"(CLIENT: |SERVER: )?(Received|Sent) message larger than max \((\d+) vs\. (\d+)\)"
)
_OF_RESPONSES = (("CLIENT: ", "Received"), ("SERVER: ", "Sent"))


def as_documented(error: BaseException) -> ServeGrpcError | None:
    """The error of ours that stands for one of gRPC's; None for any other error."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return None
    details = error.details() or ""
    too_large = _TOO_LARGE.search(details)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and too_large is not None:
        side, verb, size, limit = too_large.groups()
        is_response = (side, verb) in _OF_RESPONSES
        return MessageTooLargeError(
            int(size),
            int(limit),
            "response" if is_response else "request",
            # Without a side it may be the one or the other.
            may_have_executed=is_response or side is None,
        )
    return ReplicaError(
        f"Ray Serve's own gRPC transport failed: {error.code().name}: {details}",
        may_have_executed=True,
    )
