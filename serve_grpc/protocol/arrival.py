"""What one message of a caller says to its replica, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_grpc._generated.replica_pb2 import Request, StoredPayload
from serve_grpc.payload import Payload, Segments, Stored
from serve_grpc.protocol.assembler import PayloadOverflow
from serve_grpc.protocol.envelope import Envelope
from serve_grpc.protocol.input_items import InboundItem
from serve_grpc.protocol.wire import MAX_STORED_BYTES

__all__ = ["Arrival", "InboundRequest", "stored_payload"]


@dataclass(slots=True)
class InboundRequest:
    """One request, with the envelope it refers to.

    Attributes:
        id: Within the session.
        template: What it shares with other requests.
        request: The frame itself; its payload may have come before it, in fragments.
        payload: The serialized arguments, whole.
    """

    id: int
    template: Envelope
    request: Request
    payload: Payload


@dataclass(slots=True)
class Arrival:
    """Everything one message of the caller said.

    Attributes:
        requests: Requests that the owner decides on. One may be over by then: its cancel can be in
            the same message.
        cancelled: Ids of calls that the caller gave up.
        credits: (id, items, bytes) that the caller grants to its streams.
        inputs: What came of streams that are arguments, in order.
    """

    requests: list[InboundRequest] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    credits: list[tuple[int, int, int]] = field(default_factory=list)
    inputs: Sequence[InboundItem] = ()
    refused: bool = False
    """The session is refused; write what the outbox holds, then end the stream."""
    unknown_key: bool = False
    """The caller holds another secret; look for newer ones, then `hear_hello_again`."""


def stored_payload(stored: StoredPayload, stores_above: int | None) -> Segments:
    """What stands for a payload that is in Ray's object store.

    Args:
        stored: Where it is.
        stores_above: As of `ReplicaSession`.

    Raises:
        PayloadOverflow: The session has not the feature: it is what it would be if it were sent.
    """
    if stores_above is None or stored.size > MAX_STORED_BYTES:
        raise PayloadOverflow(stored.size)
    return Segments((), stored=Stored(stored.size, stored.object_id, stored.owner_address))
