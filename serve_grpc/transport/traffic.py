"""How much went over sessions: plain integers that only grow, written by whoever pumps messages."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Traffic"]


@dataclass(slots=True)
class Traffic:
    """Messages of any number of sessions, and what was in them.

    Attributes:
        frames_sent, frames_received: Requests one way, replies (results, items, ends, errors) the
            other way. Credits, cancels and heartbeats are not counted.
        bytes_sent, bytes_received: Of whole messages, before gRPC's own framing and TLS.
    """

    messages_sent: int = 0
    bytes_sent: int = 0
    frames_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    frames_received: int = 0
