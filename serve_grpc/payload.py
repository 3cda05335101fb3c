"""A payload in pieces, as a serializer wrote it or as it arrived.

Joining megabytes costs as much as sending them; the transport cuts a large payload into fragments
anyway, and it arrives so. Whoever needs one piece asks for `joined`.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ON_LOOP_BYTES", "Payload", "Segments", "joined", "pieces"]

ON_LOOP_BYTES = 4 * 1024 * 1024
"""Payloads above this size are deserialized in a thread: an event loop that copies tens of
megabytes does nothing else for tens of milliseconds."""


class Segments:
    """Pieces of one payload, in order. Nobody changes their bytes any more."""

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self.parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        """Size of the whole payload, in bytes."""
        return self._size

    def __repr__(self) -> str:
        return f"<Segments {len(self.parts)} pieces, {self._size} bytes>"


Payload = bytes | Segments


def joined(payload: Payload) -> bytes:
    """The payload in one piece."""
    return b"".join(payload.parts) if isinstance(payload, Segments) else payload


def pieces(payload: Payload) -> Sequence[bytes | memoryview]:
    """The payload in one piece or several."""
    return payload.parts if isinstance(payload, Segments) else (payload,)
