"""Two session machines that know each other, and what tests put into them.

`new_pair` gives both before their first message, `open_pair` after the handshake. Messages are
carried by hand: `drain_into` moves all that one side has to say to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve_grpc.protocol.caller import CallerSession, Envelope, RequestFields
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.replica import ReplicaSession

SECRET = b"the secret of this cluster......"
REPLICA_ID = "replica-1"
LIMIT = 1024 * 1024
UNARY = Envelope("predict", "pickle", "msgpack", False, "/route", "app")
STREAM = Envelope("generate", "pickle", "msgpack", True, "/route", "app")


def new_caller(**changes: Any) -> CallerSession[Any]:
    """A caller that has said nothing yet."""
    arguments: dict[str, Any] = {
        "replica_id": REPLICA_ID,
        "secret": SECRET,
        "nonce": b"c" * 16,
        "max_message_bytes": LIMIT,
    }
    return CallerSession(**{**arguments, **changes})


def new_replica(*, secret: bytes = SECRET, **changes: Any) -> ReplicaSession:
    """A replica that has heard nothing yet."""
    arguments: dict[str, Any] = {
        "replica_id": REPLICA_ID,
        "keyring": Keyring((secret,)),
        "nonce": b"r" * 16,
        "epoch": 7,
        "max_ongoing_requests": 5,
        "max_message_bytes": LIMIT,
    }
    return ReplicaSession(**{**arguments, **changes})


def shake_hands(caller: CallerSession[Any], replica: ReplicaSession) -> None:
    """Carry the four messages of the handshake."""
    for _ in range(2):
        replica.receive(caller.outbox.take())
        caller.receive(replica.outbox.take())


def open_pair(
    limit: int = LIMIT, input_credit: tuple[int, int] | None = None
) -> tuple[CallerSession[Any], ReplicaSession]:
    """A caller and a replica after the handshake.

    Args:
        limit: Largest payload, in bytes, for both.
        input_credit: First credit of each stream that is an argument; None to take none.
    """
    caller = new_caller(max_message_bytes=limit)
    replica = new_replica(max_message_bytes=limit, input_credit=input_credit)
    shake_hands(caller, replica)
    return caller, replica


def fields(payload: bytes = b"", envelope: Envelope = UNARY, **changes: Any) -> RequestFields:
    """What one request says; a stream has credit enough for any test."""
    credit = {"credit_items": 2**31, "credit_bytes": 2**31} if envelope.stream else {}
    return RequestFields(envelope, payload, **{"request_id": "request", **credit, **changes})


def drain_into(outbox: Outbox[Any], receive: Callable[[bytes], Any]) -> list[Any]:
    """Carry everything `outbox` holds; returns what `receive` said to each message."""
    heard = []
    while outbox:
        message = outbox.take()
        assert message, "it holds something and says nothing"
        heard.append(receive(message))
    return heard
