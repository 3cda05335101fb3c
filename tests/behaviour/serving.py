"""A replica without Ray: the real server on a real socket, with an echo for a dispatcher."""

from __future__ import annotations

from typing import Any

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.routing.peer import Peer, ReplicaFacts
from tests.fakes.deliveries import Chooser, deliver, send

__all__ = ["SECRET", "Answering", "Chooser", "Echo", "connect", "new_call", "send", "serve"]

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


def connect(
    port: int, chooser: Chooser, settings: Settings | None = None, **fields: Any
) -> Connection:
    """A connection to it, not yet opened."""
    facts = {"replica_id": REPLICA_ID, "address": f"127.0.0.1:{port}", **fields}
    secret = facts.pop("secret", SECRET)
    secrets = ClusterSecrets(lambda: (secret,), (secret,))
    peer = Peer(ReplicaFacts(**{"max_ongoing_requests": 100, **facts}))
    connection = Connection(peer, settings or Settings(), secrets)
    connection.users.add(chooser)
    return connection


def new_call(chooser: Chooser, payload: bytes = b"", method: str = "echo") -> Call:
    """A call that was not sent."""
    envelope = Envelope(method, "noop", "noop", False, "", "")
    return deliver(RequestFields(envelope, payload, "an id"), chooser).call
