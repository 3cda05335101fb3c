"""A payload in pieces, as a serializer wrote it or as it arrived.

Joining megabytes costs as much as sending them; the transport cuts a large payload into fragments
anyway, and it arrives so. Whoever needs one piece asks for `joined`. Bytes that name ObjectRefs are
of no use once their objects are freed, so the refs go with them, as `refs_of` a payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["ON_LOOP_BYTES", "Payload", "Segments", "joined", "pieces", "refs_of", "with_refs"]

ON_LOOP_BYTES = 4 * 1024 * 1024
"""Payloads above this size are deserialized in a thread: an event loop that copies tens of
megabytes does nothing else for tens of milliseconds."""


class Segments:
    """Pieces of one payload, in order. Nobody changes their bytes any more.

    Attributes:
        parts: The pieces.
        refs: The ObjectRefs that the bytes name, where there are any; nothing is done with them
            but to hold them.
    """

    __slots__ = ("_size", "parts", "refs")

    def __init__(self, parts: Sequence[bytes | memoryview], refs: Sequence[Any] = ()) -> None:
        self.parts = parts
        self.refs = refs
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


def refs_of(payload: Payload) -> Sequence[Any]:
    """The ObjectRefs that the payload names."""
    return payload.refs if type(payload) is Segments else ()


def with_refs(payload: Payload, refs: Sequence[Any]) -> Segments:
    """The same bytes, which name `refs`."""
    return Segments(pieces(payload), refs)
