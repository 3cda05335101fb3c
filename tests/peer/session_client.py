"""A client of the session, made of generated classes only: proof that the .proto is enough.

One request per message, no batching, no hand-written encoding.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import queue
from collections.abc import Iterator

import grpc

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Hello,
    Proof,
    ReplicaBatch,
    Request,
    Template,
)
from serve_grpc._generated.replica_pb2_grpc import ReplicaStub

__all__ = ["SessionClient"]


def mac(secret: bytes, *parts: bytes) -> bytes:
    """The proof as docs/protocol describes it: every part with its length before it."""
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(secret, message, hashlib.sha256).digest()


class SessionClient:
    """A blocking session. Args: as for the plain client."""

    def __init__(self, address: str, replica_id: str, secret: bytes) -> None:
        self.replica_id = replica_id
        self.secret = secret
        self._channel = grpc.insecure_channel(address)
        self._outgoing: queue.Queue[CallerBatch | None] = queue.Queue()
        self._incoming: Iterator[ReplicaBatch] = ReplicaStub(self._channel).Session(
            iter(self._outgoing.get, None), timeout=30
        )
        self.next_id = 1

    def close(self) -> None:
        self._outgoing.put(None)
        self._channel.close()

    def send(self, batch: CallerBatch) -> None:
        self._outgoing.put(batch)

    def receive(self) -> ReplicaBatch:
        """The next message of the replica."""
        return next(self._incoming)

    def hello(self, **fields: object) -> ReplicaBatch:
        """The first message, and the replica's answer to it."""
        self.nonce = os.urandom(16)
        given = {
            "min_version": 1,
            "max_version": 1,
            "replica_id": self.replica_id,
            "nonce": self.nonce,
            **fields,
        }
        self.send(CallerBatch(hello=Hello(**given)))
        return self.receive()

    def proof(self, answer: ReplicaBatch) -> ReplicaBatch:
        """The second message, and the replica's answer to it."""
        challenge = answer.challenge
        signed = (
            self.nonce,
            challenge.nonce,
            self.replica_id.encode(),
            challenge.epoch.to_bytes(8, "big"),
        )
        expected = mac(self.secret, b"serve_grpc session v1", b"replica", *signed)
        self.is_replica_proven = hmac.compare_digest(challenge.mac, expected)
        ours = mac(self.secret, b"serve_grpc session v1", b"caller", *signed)
        self.send(CallerBatch(proof=Proof(mac=ours)))
        return self.receive()

    def open(self) -> None:
        """The whole handshake."""
        answer = self.proof(self.hello())
        assert answer.HasField("welcome"), answer
        assert self.is_replica_proven

    def request(self, payload: bytes, template: Template, **fields: object) -> int:
        """Send one request with its template; returns its id."""
        call_id, self.next_id = self.next_id, self.next_id + 1
        request = Request(id=call_id, template=template.number, payload=payload, **fields)
        self.send(CallerBatch(templates=[template], requests=[request]))
        return call_id

    def replies(self, call_id: int) -> Iterator[object]:
        """Replies of one call, with the payloads of their fragments put together."""
        pending = b""
        while True:
            batch = self.receive()
            for fragment in batch.fragments:
                if fragment.id == call_id:
                    pending += fragment.data
            for reply in batch.replies:
                if reply.id == call_id:
                    reply.payload = pending + reply.payload
                    pending = b""
                    yield reply
                    if reply.kind != reply.ITEM:
                        return
