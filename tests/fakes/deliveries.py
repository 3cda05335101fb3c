"""For tests of a connection: a chooser that lets each call end with what came of it."""

from __future__ import annotations

import asyncio

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.outcomes import Lost, Outcome, Raised
from serve_grpc.mailbox import mailbox_of
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import RequestFields

__all__ = ["Chooser", "deliver", "delivery_of", "send"]


class Chooser:
    """Ends calls, and remembers which were lost; also a user of the connection.

    Attributes:
        lost: Calls that were, each with whether it may have started.
        ready: Those that had to wait for themselves, and could be sent.
    """

    def __init__(self) -> None:
        self.lost: list[tuple[Call, bool]] = []
        self.ready: list[Delivery] = []

    def on_sent(self, replica_id: str) -> None:
        """Nothing is counted."""

    def on_left(self, replica_id: str) -> None:
        """Likewise."""

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        if error is not None:
            delivery.end(Raised(RuntimeError(f"{error.code} {error}")))

    def on_rejected(self, delivery: Delivery, connection: Connection) -> None:
        delivery.end(Raised(RuntimeError("rejected")))

    def on_ready(self, delivery: Delivery) -> None:
        self.ready.append(delivery)

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        self.lost.append((delivery.call, lost.may_have_started))
        return not delivery.end(Raised(ConnectionError(lost.reason)))

    def on_end(self, delivery: Delivery, outcome: Outcome) -> None:
        """Nothing is kept of a call."""

    def trouble(self) -> str:
        return ""

    def on_change(self, connection: Connection) -> None:
        """The tests look at the connection itself."""


def deliver(fields: RequestFields, chooser: Chooser, kind: type[Call] = Call) -> Delivery:
    """The way of a call whose payloads are its values; on a running loop."""
    mailbox = mailbox_of(asyncio.get_running_loop())
    return Delivery(kind(fields, mailbox=mailbox, response_loads=joined), chooser)


def delivery_of(call: Call) -> Delivery:
    """The way of a call that goes on."""
    delivery = call.delivery
    assert isinstance(delivery, Delivery)
    return delivery


def send(connection: Connection, call: Call, *, is_new: bool = False) -> Delivery:
    """Send a call that can be sent."""
    delivery = delivery_of(call)
    assert delivery.send(connection, is_new=is_new)
    return delivery
