"""How much went over sessions: plain integers that only grow, written by whoever pumps messages."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Messages of any number of sessions, and what was in them.

    Attributes:
        frames_sent, frames_received: Requests one way, replies (results, items, ends, errors) the
            other way. Credits, cancels and heartbeats are not counted.
        stored_sent, stored_received: Those of them whose payload went by Ray's object store.
        bytes_sent, bytes_received: Of whole messages, before the carrier's own framing and TLS.
        inputs_sent, input_bytes_sent: Items of streams that are arguments, and their bytes.
        inputs_received, input_bytes_received: The same, at the replica.
        local_fallbacks: How often a session took gRPC because the local lane could not be had.
    """

    messages_sent: int = 0
    bytes_sent: int = 0
    frames_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    frames_received: int = 0
    local_fallbacks: int = 0
    stored_sent: int = 0
    stored_received: int = 0
    inputs_sent: int = 0
    input_bytes_sent: int = 0
    inputs_received: int = 0
    input_bytes_received: int = 0
