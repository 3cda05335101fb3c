"""In the place of a router, for parts that measure a connection without one."""

from __future__ import annotations

import asyncio

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.outcomes import Lost, Outcome, Raised
from serve_grpc.mailbox import mailbox_of
from serve_grpc.protocol.caller import RequestFields

__all__ = ["LoneRouter"]


class LoneRouter:
    """Ends calls. `changed` is set when a connection went up or down, or has room again."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def new_delivery(self, fields: RequestFields) -> Delivery:
        """The way of a call to one replica; on a running loop."""
        mailbox = mailbox_of(asyncio.get_running_loop())
        return Delivery(Call(fields, mailbox=mailbox, response_loads=bytes), self)

    def on_sent(self, replica_id: str) -> None:
        """Nothing is counted."""

    def on_left(self, replica_id: str) -> None:
        """Likewise."""

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        assert error is None

    def on_rejected(self, delivery: Delivery, connection: Connection) -> None:
        raise AssertionError("the echo takes every call")

    def on_ready(self, delivery: Delivery) -> None:
        raise AssertionError("no call is over the limit")

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        return not delivery.end(Raised(ConnectionError(lost.reason)))

    def on_end(self, delivery: Delivery, outcome: Outcome) -> None:
        """Nothing is kept of a call."""

    def trouble(self) -> str:
        return ""

    def on_change(self, _: Connection) -> None:
        self.changed.set()
