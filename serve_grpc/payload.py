"""A payload in pieces, as a serializer wrote it or as it arrived.

Joining megabytes costs as much as sending them; the transport cuts a large payload into fragments
anyway, and it arrives so. Whoever needs one piece asks for `joined`. Bytes that name ObjectRefs are
of no use once their objects are freed, so the refs go with them, as `refs_of` a payload. A payload
over the message limit may be in Ray's object store instead: then it has a size, and no pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

__all__ = [
    "LARGE_BYTES",
    "ON_LOOP_BYTES",
    "Memory",
    "Origin",
    "Payload",
    "Segments",
    "Stored",
    "claimed",
    "is_free",
    "is_stored",
    "joined",
    "passed_on",
    "pieces",
    "refs_of",
    "unwritten",
    "with_refs",
]

LARGE_BYTES = 64 * 1024
"""From this size on, C's pickler writes an object's bytes by themselves (`FRAME_SIZE_TARGET` in
CPython's _pickle.c), and a piece of a payload is worth a place in shared memory."""

ON_LOOP_BYTES = 4 * 1024 * 1024
"""Payloads of which more is copied are deserialized in a thread: an event loop that copies tens of
megabytes does nothing else for tens of milliseconds."""


class Memory(Protocol):
    """Memory that other processes of this node can read."""

    def keep(self, piece: bytes | memoryview) -> memoryview | None:
        """A copy of `piece` there, which lives as long as the view; None if there is no room.

        A piece that is being passed on (`passed_on`) lies in such memory, and is kept as it is.
        """

    def gather(self, pieces: Sequence[memoryview]) -> memoryview | None:
        """As `keep`, of bytes in several pieces, not all empty: one behind the other."""


class Origin(Protocol):
    """Where a piece of memory that can be written to is from: the `origin` of its view's `obj`.

    One payload may be read more than once, and who reads it may write to what he gets.

    Attributes:
        size: Of the whole piece, in bytes.
        is_new: Whether nobody has called `claim` or `pass_on`; for an estimate.
    """

    size: int

    @property
    def is_new(self) -> bool: ...

    def claim(self) -> bool:
        """Whether this is the first call: then the piece is the caller's, to write to."""

    def pass_on(self) -> bool:
        """Whether nobody has claimed the piece; then nobody can from here on, so it never changes.

        Called by who sends it on, as often as he likes.
        """

    def read(self) -> bytearray:
        """A copy of the piece as it was sent, whatever was written to it since."""


class Stored(NamedTuple):
    """What a frame says of a payload that is in Ray's object store, in the words of its message.

    Id and owner are empty in a reply: there the object is the first of those that were lent.
    """

    size: int
    object_id: bytes = b""
    owner_address: bytes = b""


class Segments:
    """Pieces of one payload, in order. Nobody changes their bytes any more.

    Attributes:
        parts: The pieces.
        refs: The ObjectRefs that the bytes name, where there are any; nothing is done with them
            but to hold them. Of a stored payload, the first one is of the object that it is in.
        stored: Set if the bytes are in Ray's object store, and not here: what the frame says of
            them.
        has_buffers: Whether it was written here as a pickle with its buffers behind it
            (`pickling`), which not every peer can read.
    """

    __slots__ = ("_size", "has_buffers", "parts", "refs", "stored")

    def __init__(
        self,
        parts: Sequence[bytes | memoryview],
        refs: Sequence[Any] = (),
        stored: Stored | None = None,
        *,
        has_buffers: bool = False,
    ) -> None:
        self.parts = parts
        self.refs = refs
        self.stored = stored
        self.has_buffers = has_buffers
        self._size: int = sum(map(len, parts)) if stored is None else stored.size

    def __len__(self) -> int:
        """Size of the whole payload, in bytes."""
        return self._size

    def __repr__(self) -> str:
        return f"<Segments {len(self.parts)} pieces, {self._size} bytes>"


Payload = bytes | Segments


def is_stored(payload: Payload | None) -> bool:
    """Whether the payload is in Ray's object store, and its bytes are not here."""
    return type(payload) is Segments and payload.stored is not None


def joined(payload: Payload) -> bytes:
    """The payload in one piece."""
    return b"".join(payload.parts) if isinstance(payload, Segments) else payload


def pieces(payload: Payload) -> Sequence[bytes | memoryview]:
    """The payload in one piece or several."""
    return payload.parts if isinstance(payload, Segments) else (payload,)


def claimed(piece: memoryview) -> memoryview | bytearray:
    """The bytes of a piece, for one reader, who may write to them: a copy for all but the first."""
    origin: Origin | None = getattr(piece.obj, "origin", None)
    if origin is None:
        return piece
    if len(piece) != origin.size:  # a part, and another reader may have the next one
        return bytearray(piece)
    return piece if origin.claim() else origin.read()


def is_free(piece: bytes | memoryview) -> bool:
    """Whether `claimed` would take the piece as it lies there, and it can be written to."""
    if isinstance(piece, bytes) or piece.readonly:
        return False
    origin: Origin | None = getattr(piece.obj, "origin", None)
    return origin is None or (origin.is_new and len(piece) == origin.size)


def unwritten(piece: memoryview) -> memoryview | bytearray:
    """The bytes of a piece as they were sent, whatever its reader has written to them."""
    origin: Origin | None = getattr(piece.obj, "origin", None)
    return piece if origin is None or len(piece) != origin.size else origin.read()


def passed_on(piece: memoryview) -> memoryview | bytearray:
    """The bytes of a piece as they were sent, to be sent on: in place, if nobody opened it."""
    origin: Origin | None = getattr(piece.obj, "origin", None)
    if origin is None or len(piece) != origin.size:
        return piece
    return piece if origin.pass_on() else origin.read()


def refs_of(payload: Payload) -> Sequence[Any]:
    """The ObjectRefs that the payload names."""
    return payload.refs if type(payload) is Segments else ()


def with_refs(payload: Payload, refs: Sequence[Any]) -> Segments:
    """The same bytes, which name `refs`."""
    has_buffers = type(payload) is Segments and payload.has_buffers
    return Segments(pieces(payload), refs, has_buffers=has_buffers)
