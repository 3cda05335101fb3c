"""A connection whose session is open, its calls, and an owner of them that fails where it is told.

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
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.transport.mailbox import mailbox_of
from serve_grpc.transport.secrets import ClusterSecrets
from tests.unit.sessions import SECRET, STREAM, UNARY, fields, open_pair

__all__ = ["Line", "Owner", "Place"]


class Place:
    """Where a sent call is, as its owner notes it."""

    def __init__(self, owner: Owner, connection: Connection, call_id: int) -> None:
        self.owner, self.connection, self.call_id = owner, connection, call_id


class _Stream:
    """Where the connection has its gRPC stream."""

    def kick(self, *, at_once: bool = False) -> None:
        """Nothing is written."""

    def cancel(self) -> None:
        """Nothing is open."""


class Owner:
    """Does with calls what a router does.

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

    def _begin(self, callback: str, call: Call) -> None:
        name = call.fields.request_id
        if (callback, name) in self.collects:
            gc.collect()
        if (callback, name) in self.fails:
            raise RuntimeError(f"{callback} fails")

    def _end(self, call: Call) -> None:
        call.place = None
        self.ended[call.fields.request_id] += 1

    def on_reply(self, call: Call, kind: int, payload: Any, error: Error | None) -> None:
        self._begin("on_reply", call)
        if kind == CallEventKind.ITEM:
            call.add_item(payload)
            return
        self._end(call)
        if error is None:
            call.succeed(payload)
        else:
            call.fail(RuntimeError(error.message))

    def on_rejected(self, calls: list[Call]) -> None:
        for call in calls:
            self._begin("on_rejected", call)
            self._end(call)
            call.fail(RuntimeError("rejected"))

    def on_lost(self, call: Call, *, may_have_started: bool, reason: str) -> None:
        self._begin("on_lost", call)
        self._end(call)
        call.fail(ConnectionError(reason))

    def on_change(self, _: Connection) -> None:
        self.changes += 1
        if ("on_change", "") in self.fails:
            raise RuntimeError("on_change fails")

    def cancel(self, call: Call) -> None:
        """Given up by its consumer."""
        if not call.done:
            place = call.place
            self._end(call)
            place.connection.cancel(place.call_id)
            call.fail(RuntimeError("cancelled"))

    def grant(self, call: Call, items: int, bytes_: int) -> None:
        """No test takes enough items for it."""


class Line:
    """An open connection. To be made on a running loop.

    Args:
        new_call: The class of its calls.

    Attributes:
        ids: Of each call in its session, by its name.
    """

    def __init__(self, new_call: type[Call] = Call) -> None:
        self._new_call = new_call
        secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
        peer = Peer(ReplicaFacts("replica-1", "nowhere:1", max_ongoing_requests=100))
        self.connection = Connection(peer, Settings(), secrets)
        self._mailbox = mailbox_of(asyncio.get_running_loop())
        self.owner = Owner()
        self.connection.owners.add(self.owner)
        session, self._replica = open_pair()
        as_stream: Any = _Stream()
        self.connection._session, self.connection._stream = session, as_stream
        peer.state = PeerState.READY
        self.calls: dict[str, Call] = {}
        self.ids: dict[str, int] = {}

    def send(self, name: str, *, stream: bool = False) -> Call:
        """A call, on its way."""
        call = self._new_call(
            fields(b"request", STREAM if stream else UNARY, request_id=name),
            owner=self.owner,
            mailbox=self._mailbox,
            response_loads=bytes,
            deadline_s=None,
            is_idempotent=False,
        )
        self.ids[name] = self.connection.send(call)
        call.place = Place(self.owner, self.connection, self.ids[name])
        self.calls[name] = call
        return call

    def leave(self) -> CallerBatch:
        """What would be written next."""
        session = self.connection._session
        assert session is not None
        return CallerBatch.FromString(session.outbox.take())

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
