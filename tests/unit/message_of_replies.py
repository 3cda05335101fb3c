"""A connection whose session is open, its calls, and a chooser that fails where it is told.

There is no socket: a test makes the replica's messages, and hands them in with `Line.hear`.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

from serve_grpc._generated.replica_pb2 import CallerBatch, Error, ReplicaBatch, Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.outcomes import GivenUp, Lost, Outcome, Raised
from serve_grpc.caller.session import Session
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.mailbox import mailbox_of
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from tests.unit.sessions import SECRET, STREAM, UNARY, fields, open_pair

__all__ = ["Chooser", "Line"]


class _Stream:
    """Where the connection has its link, and the pump on it."""

    carrier = "memory"

    def kick_item(self) -> None:
        """As `kick`."""
        self.kick()

    def kick(self, *, at_once: bool = False) -> None:
        """Nothing is written."""

    def cancel(self, reason: str = "") -> None:
        """Nothing is open."""


class Chooser:
    """Does with calls what a router does. Also hears of news.

    Attributes:
        fails: Callbacks that raise, each with the name of the call it raises for.
        collects: Callbacks that find the garbage collector at work, likewise.
        ended: How often each call was ended here, by its name.
    """

    def __init__(self) -> None:
        self.fails: set[tuple[str, str]] = set()
        self.collects: set[tuple[str, str]] = set()
        self.ended: Counter[str] = Counter()
        self.changes = 0

    def begin(self, callback: str, name: str) -> None:
        """Fail, or collect, where that is asked for."""
        if (callback, name) in self.collects:
            gc.collect()
        if (callback, name) in self.fails:
            raise RuntimeError(f"{callback} fails")

    def on_sent(self, replica_id: str) -> None:
        """Nothing is counted."""

    def on_left(self, replica_id: str) -> None:
        """Likewise."""

    def on_answered(self, delivery: Delivery, _: Connection, error: Error | None) -> None:
        self.begin("on_answered", delivery.request_id)

    def on_rejected(self, delivery: Delivery, _: Connection) -> None:
        self.begin("on_rejected", delivery.request_id)
        delivery.end(Raised(RuntimeError("rejected")))

    def on_ready(self, delivery: Delivery) -> None:
        raise AssertionError("no request of these is too large")

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        self.begin("takes_back", delivery.request_id)
        return not delivery.end(Raised(ConnectionError(lost.reason)))

    def on_end(self, delivery: Delivery, outcome: Outcome) -> None:
        if type(outcome) is not GivenUp:  # that is the guard's word
            self.ended[delivery.request_id] += 1

    def trouble(self) -> str:
        return ""

    def on_change(self, _: Connection) -> None:
        self.changes += 1
        if ("on_change", "") in self.fails:
            raise RuntimeError("on_change fails")


class Line:
    """An open connection. To be made on a running loop.

    Args:
        new_call: The class of its calls.
        input_credit: First credit of each input; None if the replica takes none.

    Attributes:
        ids: Of each call in its session, by its name.
    """

    def __init__(
        self, new_call: type[Call] = Call, input_credit: tuple[int, int] | None = None
    ) -> None:
        secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
        peer = Peer(ReplicaFacts("replica-1", "nowhere:1", max_ongoing_requests=100))
        self.connection = Connection(peer, Settings(), secrets)
        self._mailbox = mailbox_of(asyncio.get_running_loop())
        self.chooser = chooser = Chooser()

        class Scripted(new_call):  # type: ignore[valid-type, misc]
            __slots__ = ()

            def add_item(self, payload: Any) -> None:
                chooser.begin("add_item", self.fields.request_id)
                super().add_item(payload)

        self._new_call: type[Call] = Scripted
        self.connection.users.add(self.chooser)
        machine, self._replica = open_pair(input_credit=input_credit)
        session: Any = object.__new__(Session)
        session.machine, session._pump, session.is_open = machine, _Stream(), True
        session._interval_s, session._received_s = Settings().heartbeat_interval_s, 0.0
        session._ping_number, session._pinged_s, session.look_s = 0, None, 0.0
        session.kick = session._pump.kick
        self.connection._session = session
        self.connection.peer_max_message_bytes = machine.peer_max_message_bytes
        self.connection.takes_inputs = input_credit is not None
        peer.state = PeerState.READY
        self.calls: dict[str, Call] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.ids: dict[str, int] = {}

    def send(self, name: str, *, stream: bool = False) -> Call:
        """A call, on its way."""
        request = fields(b"request", STREAM if stream else UNARY, request_id=name)
        call = self._new_call(request, mailbox=self._mailbox, response_loads=bytes)
        delivery = Delivery(call, self.chooser)
        assert delivery.send(self.connection)
        self.calls[name], self.deliveries[name] = call, delivery
        self.ids[name] = delivery._call_id
        return call

    def delivery(self, call: Call) -> Delivery:
        """Of a call."""
        return self.deliveries[call.fields.request_id]

    def leave(self) -> CallerBatch:
        """What would be written next."""
        session = self.connection._session
        assert session is not None
        return CallerBatch.FromString(session.machine.outbox.take())

    def result(self, name: str) -> Reply:
        """The replica's result of a call: its name."""
        return Reply(id=self.ids[name], kind=Reply.RESULT, payload=name.encode())

    def item(self, name: str) -> Reply:
        """An item of a stream."""
        return Reply(id=self.ids[name], kind=Reply.ITEM, payload=b"item")

    def hear(self, *replies: Reply, **rest: Any) -> None:
        """Handle one message of the replica, as the stream does it: an error ends the session."""
        message = ReplicaBatch(replies=replies, **rest).SerializeToString()
        try:
            self._mailbox.enter(self.connection._on_message, message)
        except Exception as error:
            self._mailbox.enter(self.connection._on_closed, error)
