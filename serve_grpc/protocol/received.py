"""What one message of a replica says to its caller, as plain values."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.payload import Payload, Segments
from serve_grpc.protocol.input_items import InputNews

__all__ = ["CallEvent", "CallEventKind", "CallT", "Received"]

CallT = TypeVar("CallT")


class CallEventKind(enum.IntEnum):
    """What happened to a call; the values of Reply.Kind, and what only the caller can tell."""

    RESULT = Reply.RESULT
    ITEM = Reply.ITEM
    END = Reply.END
    ERROR = Reply.ERROR
    # Away from the numbers of the wire, which may get more.
    TOO_LARGE = 16
    """The payload was over this side's limit; `payload` is its size as text."""


class CallEvent(NamedTuple):
    """What a replica said about one call: an item, or how it ended.

    `call` is what the owner gave to `request` (a NamedTuple cannot be generic on CPython 3.10).
    `payload` has no bytes where the kind has none; that of an error may still hold refs.
    """

    call: Any
    kind: int
    payload: Payload
    error: Error | None


@dataclass(slots=True)
class Received(Generic[CallT]):
    """Everything one message of the replica said."""

    events: list[CallEvent] = field(default_factory=list)
    rejected: list[CallT] = field(default_factory=list)
    undelivered: list[CallT] = field(default_factory=list)
    """Calls beyond the drain's last id: certainly not started."""
    load: int | None = None
    """What ran on the replica, and our requests that it had not read by then."""
    standby: int = 0
    slot_free: bool = False
    opened: bool = False
    draining: bool = False
    inputs: Sequence[InputNews] = ()
    lent: list[tuple[int, Segments | None]] = field(default_factory=list)
    """Refs that the replica holds for this side, by number, each with the payload that names them;
    None if nobody will read it."""
