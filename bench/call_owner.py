"""In the place of a router, for parts that measure a connection without one."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.payload import Payload
from serve_grpc.protocol.caller import CallEventKind

__all__ = ["CallOwner", "Place"]


class CallOwner:
    """Ends calls. `changed` is set when a connection went up or down, or has room again."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def on_reply(self, call: Call, kind: int, payload: Payload, _: Error | None) -> None:
        assert kind == CallEventKind.RESULT
        call.succeed(payload)

    def on_rejected(self, calls: list[Call]) -> None:
        raise AssertionError("the echo takes every call")

    def on_lost(self, call: Call, *, may_have_started: bool, reason: str) -> None:
        call.fail(ConnectionError(reason))

    def on_change(self, _: Connection) -> None:
        self.changed.set()

    def cancel(self, call: Call) -> None:
        call.fail(asyncio.CancelledError())

    def grant(self, call: Call, items: int, bytes_: int) -> None:
        raise AssertionError("no streams here")


class Place(NamedTuple):
    """Where a call is, as far as its connection asks."""

    owner: CallOwner
