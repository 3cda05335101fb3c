"""A client of the plain door, made of generated grpcio stubs: what another language would write."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from serve_grpc._generated.replica_pb2 import CallPart, CallReply, CallRequest, Error
from serve_grpc._generated.replica_pb2_grpc import ReplicaStub
from serve_grpc.protocol.handshake import sign_call

__all__ = ["PlainClient", "error_of"]

CALL = "/serve_grpc.v1.Replica/Call"
CALL_UPLOAD = "/serve_grpc.v1.Replica/CallUpload"
CALL_EXCHANGE = "/serve_grpc.v1.Replica/CallExchange"
CALL_STREAM = "/serve_grpc.v1.Replica/CallStream"


class PlainClient:
    """Args: `address`, `replica_id` and `secret` as the cluster knows them."""

    def __init__(self, address: str, replica_id: str, secret: bytes) -> None:
        self.replica_id = replica_id
        self.secret = secret
        self.channel = grpc.insecure_channel(address)
        self.stub = ReplicaStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def proof(self, method: str, request: bytes = b"", now_s: float | None = None) -> tuple[Any]:
        """Metadata that proves membership for one call."""
        value = sign_call(
            self.secret,
            method,
            self.replica_id,
            request,
            os.urandom(8).hex(),
            time.time() if now_s is None else now_s,
        )
        return (("authorization", value),)

    def call(self, request: CallRequest, **options: Any) -> CallReply:
        """A unary call with a fresh proof."""
        metadata = self.proof(CALL, request.SerializeToString())
        options = {"timeout": 20, "metadata": metadata, **options}
        return self.stub.Call(request, **options)

    def future(self, request: CallRequest) -> Any:
        """The same, not waited for."""
        metadata = self.proof(CALL, request.SerializeToString())
        return self.stub.Call.future(request, timeout=20, metadata=metadata)

    def stream(self, request: CallRequest, **options: Any) -> Iterator[CallReply]:
        """A streaming call with a fresh proof."""
        metadata = self.proof(CALL_STREAM, request.SerializeToString())
        return self.stub.CallStream(request, timeout=20, metadata=metadata, **options)

    def upload(self, parts: Iterable[CallPart], **options: Any) -> CallReply:
        """A call with a stream among its arguments; the proof covers the first part."""
        first, rest = _first(parts)
        metadata = self.proof(CALL_UPLOAD, first.SerializeToString())
        return self.stub.CallUpload(rest, **{"timeout": 20, "metadata": metadata, **options})

    def exchange(self, parts: Iterable[CallPart], **options: Any) -> Any:
        """The same, with a stream of results."""
        first, rest = _first(parts)
        metadata = self.proof(CALL_EXCHANGE, first.SerializeToString())
        return self.stub.CallExchange(rest, **{"timeout": 20, "metadata": metadata, **options})


def _first(parts: Iterable[CallPart]) -> tuple[CallPart, Iterator[CallPart]]:
    rest = iter(parts)
    first = next(rest)
    return first, itertools.chain([first], rest)


def error_of(error: grpc.RpcError) -> Error:
    """The `Error` in a failed call's trailing metadata."""
    trailer = dict(error.trailing_metadata())
    return Error.FromString(trailer["serve-grpc-error-bin"])
