"""A replica without Ray: the real server on a real socket, with an echo for a dispatcher."""

from __future__ import annotations

import asyncio
from typing import Any

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.config import Settings
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import CallEventKind, Envelope, RequestFields
from serve_grpc.routing.peer import Peer, ReplicaFacts
from serve_grpc.transport.mailbox import mailbox_of
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.server import ReplicaServer

__all__ = ["SECRET", "Answering", "Echo", "Owner", "connect", "new_call", "serve"]

SECRET = b"s" * 32
REPLICA_ID = "a-replica"


class Echo:
    """Replies with the payload, or keeps calls whose method is "hold"."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, int]] = []
        self.closed: list[list[int]] = []

    def on_arrival(self, stream: Any, arrival: Any) -> None:
        for request in arrival.requests:
            if request.template.method == "hold":
                self.held.append((stream, request.id))
            else:
                stream.session.reply(request.id, Reply.RESULT, joined(request.payload))
        stream.kick()

    def on_session_closed(self, stream: Any, call_ids: list[int]) -> None:
        self.closed.append(call_ids)

    def on_plain_call(self, call: Any) -> None:
        call.end(Error(code=Error.INTERNAL, message="no plain calls here"))

    def on_plain_call_closed(self, call: Any) -> None:
        """Nothing is kept of plain calls."""

    def ongoing(self) -> int:
        return len(self.held)

    def max_ongoing_requests(self) -> int:
        return 100

    def standby(self) -> int:
        return 0


class Answering(Echo):
    """Answers plain calls, too: with the payload, and a stream with three."""

    def on_plain_call(self, call: Any) -> None:
        for _ in range(3 if call.is_stream else 1):
            call.put(call.request.payload)
        if call.is_stream:
            call.end()


class Owner:
    """The router's place: ends calls, remembers what became of them."""

    def __init__(self) -> None:
        self.lost: list[tuple[Call, bool]] = []

    def on_reply(self, call: Call, kind: int, payload: bytes, error: Error | None) -> None:
        if kind == CallEventKind.RESULT:
            call.succeed(joined(payload))
        else:
            call.fail(RuntimeError(f"{kind} {error}"))

    def on_rejected(self, calls: list[Call]) -> None:
        for call in calls:
            call.fail(RuntimeError("rejected"))

    def on_lost(self, call: Call, *, may_have_started: bool, reason: str) -> None:
        self.lost.append((call, may_have_started))
        call.fail(ConnectionError(reason))

    def on_change(self, connection: Connection) -> None:
        """The tests look at the connection itself."""

    def cancel(self, call: Call) -> None:
        call.fail(asyncio.CancelledError())

    def grant(self, call: Call, items: int, bytes_: int) -> None:
        """No streams here."""


async def serve(
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    secret: bytes = SECRET,
    **fields: Any,
) -> tuple[ReplicaServer, int, Echo]:
    """A running server, its port, its dispatcher."""
    echo = Echo()
    server = ReplicaServer(
        **{
            "replica_id": REPLICA_ID,
            "secrets": ClusterSecrets(lambda: (secret,), (secret,)),
            "settings": settings or Settings(),
            "dispatcher": echo,
            **fields,
        }
    )
    return server, await server.start(host), echo


def connect(port: int, owner: Owner, settings: Settings | None = None, **fields: Any) -> Connection:
    """A connection to it, not yet opened."""
    facts = {"replica_id": REPLICA_ID, "address": f"127.0.0.1:{port}", **fields}
    secret = facts.pop("secret", SECRET)
    secrets = ClusterSecrets(lambda: (secret,), (secret,))
    peer = Peer(ReplicaFacts(**{"max_ongoing_requests": 100, **facts}))
    connection = Connection(peer, settings or Settings(), secrets)
    connection.owners.add(owner)
    return connection


class _Place:
    def __init__(self, owner: Owner) -> None:
        self.owner = owner


def new_call(owner: Owner, payload: bytes = b"", method: str = "echo") -> Call:
    """A call that was not sent."""
    envelope = Envelope(method, "noop", "noop", False, "", "")
    call = Call(
        RequestFields(envelope, payload, "an id"),
        owner=owner,
        mailbox=mailbox_of(asyncio.get_running_loop()),
        response_loads=bytes,
        deadline_s=None,
        is_idempotent=False,
    )
    call.place = _Place(owner)
    return call
