"""A caller's and a replica's session machine that have shaken hands, and batches for them."""

from __future__ import annotations

from typing import Any

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.protocol.caller import CallerSession, Envelope, RequestFields
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.replica import InboundRequest, ReplicaSession

__all__ = ["BATCH", "ENVELOPE", "REQUEST_ID", "Pair"]

BATCH = 32
"""Calls in one message."""
ENVELOPE = Envelope("__call__", "cloudpickle", "cloudpickle", False, "/", "default")
SECRET = b"s" * 32
LIMIT = 64 * 1024 * 1024
REQUEST_ID = "0a3fbd2e-5d9c-4b0e-9d0b-2d1f6f1f5b1c"


class Pair:
    """Two machines; what one says is carried to the other by hand.

    Args:
        payload: Of each request and each result.
    """

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.caller: CallerSession[int] = CallerSession(
            replica_id="r", secret=SECRET, nonce=b"c" * 16, max_message_bytes=LIMIT
        )
        self.replica = ReplicaSession(
            replica_id="r",
            keyring=Keyring((SECRET,)),
            nonce=b"r" * 16,
            epoch=1,
            max_ongoing_requests=100,
            max_message_bytes=LIMIT,
        )
        for _ in range(2):
            self.replica.receive(self.caller.outbox.take())
            self.caller.receive(self.replica.outbox.take())

    def request(self, calls: int = BATCH) -> list[bytes]:
        """The caller's side: queue requests, take the messages they make."""
        for number in range(calls):
            self.caller.request(number, RequestFields(ENVELOPE, self.payload, REQUEST_ID))
        return _take_all(self.caller.outbox)

    def arrive(self, messages: list[bytes]) -> list[InboundRequest]:
        """The replica's side: read the requests."""
        return [
            request for message in messages for request in self.replica.receive(message).requests
        ]

    def reply(self, requests: list[InboundRequest]) -> list[bytes]:
        """The replica's side: queue results, take the messages they make."""
        for request in requests:
            self.replica.reply(request.id, Reply.RESULT, self.payload)
        return _take_all(self.replica.outbox)

    def finish(self, messages: list[bytes]) -> int:
        """The caller's side: read the results; returns how many there were."""
        return sum(len(self.caller.receive(message).events) for message in messages)

    def round_trip(self, calls: int = BATCH) -> int:
        """Requests there and results back; returns how many came back."""
        return self.finish(self.reply(self.arrive(self.request(calls))))


def _take_all(outbox: Outbox[Any]) -> list[bytes]:
    messages = []
    while outbox:
        messages.append(outbox.take())
    return messages
