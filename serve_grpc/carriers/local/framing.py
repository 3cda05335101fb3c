"""Frames of a link over a Unix socket, as bytes; no socket here.

A frame is a header and a body. The header has the kind, flags, how many messages its sender has
taken so far (the acknowledgement, see `outgoing.py`), and the length of the body. Invariant: memory
for a body is taken as its bytes come, one chunk ahead at the most, and none for a length that is
over the limit.
"""

from __future__ import annotations

import struct

from serve_grpc.carriers.link import Cause

__all__ = ["VERSION", "Decoder", "Frame", "FramingError", "abort_body", "header", "read_abort"]

VERSION = 1
"""Of all that two ends say to each other below the session: frames, and what they mean for shared
memory. It stands in the name of the socket (`paths.py`), so no frame has to tell it. Any change
that an older build would not understand is a new version."""

MESSAGE, ACK, CLOSE, ABORT = 1, 2, 3, 4
"""Kinds: a message of the session; nothing but the acknowledgement; the end in peace; the end at
once, with a cause and a reason."""
SEGMENT, RELEASED, FORGOTTEN, ABANDONED = 5, 6, 7, 8
"""Kinds about shared memory (`memory.py`): a segment, whose descriptor comes with the frame; ranges
that the peer may use again; a segment that is no more; ranges that are given back, but may never be
used again, for somebody else may still read them."""
ASKS = 1
"""Flag of a message: its sender waits for the acknowledgement."""

HEADER = struct.Struct("<BBHI")
COUNT_MASK = 0xFFFF
"""Acknowledgements count messages modulo 65,536; far fewer are ever on their way."""
CHUNK_BYTES = 256 * 1024
"""Memory that is taken for bytes which have not come yet, at the most."""
MAX_REASON_BYTES = 1024
SEGMENT_BODY = struct.Struct("<IQ")
"""Number of a segment, and its size in bytes."""
RANGE_BODY = struct.Struct("<IQ")
"""Number of a segment, and where in it the range begins."""
NUMBER_BODY = struct.Struct("<I")
MAX_RELEASED = 1024
"""Ranges in one frame."""

Frame = tuple[int, int, int, bytes]
"""Kind, flags, how many messages the peer has taken, body."""

_CAUSES = {
    Cause.LEFT: 1,
    Cause.LIMIT: 2,
    Cause.MISDIRECTED: 3,
    Cause.VERSION: 4,
    Cause.UNAUTHENTICATED: 5,
    Cause.DRAINING: 6,
    Cause.INVALID: 7,
}
_SIZES = {
    SEGMENT: range(SEGMENT_BODY.size, SEGMENT_BODY.size + 1),
    RELEASED: range(RANGE_BODY.size, MAX_RELEASED * RANGE_BODY.size + 1, RANGE_BODY.size),
    ABANDONED: range(RANGE_BODY.size, MAX_RELEASED * RANGE_BODY.size + 1, RANGE_BODY.size),
    FORGOTTEN: range(NUMBER_BODY.size, NUMBER_BODY.size + 1),
}
_NAMES = {number: cause.name for cause, number in _CAUSES.items()}


class FramingError(Exception):
    """The peer sent what is no frame."""


def header(kind: int, flags: int, taken: int, length: int) -> bytes:
    """What stands before a body."""
    return HEADER.pack(kind, flags, taken, length)


def abort_body(cause: Cause, reason: str) -> bytes:
    """The body of an ABORT; of a long reason, as much as fits."""
    text = reason.encode(errors="replace")[:MAX_REASON_BYTES]
    return bytes((_CAUSES[cause],)) + text


def read_abort(body: bytes) -> str:
    """What an ABORT says, for people: "LIMIT: too many"."""
    # A cut in the midst of a character, or a peer that sends what is no text, is still an end.
    text = body[1:].decode(errors="replace")
    return f"{_NAMES.get(body[0], 'UNKNOWN')}: {text}"


class Decoder:
    """Makes frames of the bytes of one link, however they are split.

    The bytes are put into `buffer()`, then `received` is told how many they were.

    Args:
        max_message_bytes: Largest body of a message.
        scratch: Where bytes are put that begin a frame. May be shared with other decoders, for
            nothing is left in it between two calls.
    """

    def __init__(self, max_message_bytes: int, scratch: memoryview) -> None:
        self._max_message_bytes = max_message_bytes
        self._scratch = scratch
        self._head = b""  # the first bytes of a header, if it came in pieces
        # Of a frame whose body has not come in whole: its header, the chunks that are full, the one
        # that is being filled, how much of that is filled, and what comes behind it.
        self._begun: tuple[int, int, int] | None = None
        self._chunks: list[bytearray] = []
        self._chunk = bytearray()
        self._filled = 0
        self._beyond = 0

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._begun is None:
            return self._scratch
        # Straight into the body, and not a byte further: a large one is copied once less so.
        return memoryview(self._chunk)[self._filled :]

    @property
    def is_between_frames(self) -> bool:
        """Whether nothing of the next frame has come yet."""
        return self._begun is None and not self._head

    def received(self, count: int, frames: list[Frame]) -> None:
        """Take in `count` bytes that were put into `buffer()`.

        Args:
            count: Not over the length of the buffer.
            frames: Those that are complete are appended to it.

        Raises:
            FramingError: A frame is none. Those before it are in `frames`; nothing may follow.
        """
        if self._begun is not None:
            self._filled += count
            if self._filled == len(self._chunk):
                self._chunk_is_full(self._begun, frames)
            return
        data: memoryview | bytes = self._scratch
        if self._head:
            data, self._head = self._head + self._scratch[:count], b""
            count = len(data)
        at = 0
        while count - at >= HEADER.size:
            kind, flags, taken, length = HEADER.unpack_from(data, at)
            self._check(kind, flags, length)
            at += HEADER.size
            if length > count - at:
                self._begin((kind, flags, taken), length, data[at:count])
                return
            frames.append((kind, flags, taken, bytes(data[at : at + length])))
            at += length
        self._head = bytes(data[at:count])

    def _check(self, kind: int, flags: int, length: int) -> None:
        if kind == MESSAGE:
            if length > self._max_message_bytes:
                raise FramingError(
                    f"a message of {length} bytes is over the limit of {self._max_message_bytes}"
                )
            if flags in (0, ASKS):
                return
        elif not flags:
            if kind in (ACK, CLOSE) and not length:
                return
            if kind == ABORT and 1 <= length <= 1 + MAX_REASON_BYTES:
                return
            if kind in _SIZES and length in _SIZES[kind]:
                return
        raise FramingError(f"no frame has kind {kind}, flags {flags} and {length} bytes")

    def _begin(self, begun: tuple[int, int, int], length: int, data: memoryview | bytes) -> None:
        self._begun = begun
        self._beyond = length
        self._filled = len(data)
        # All of it has come already, so this chunk may be larger than others.
        self._take_chunk(self._filled + CHUNK_BYTES)
        self._chunk[: self._filled] = data

    def _take_chunk(self, most: int) -> None:
        size = min(self._beyond, most)
        self._beyond -= size
        self._chunk = bytearray(size)

    def _chunk_is_full(self, begun: tuple[int, int, int], frames: list[Frame]) -> None:
        self._chunks.append(self._chunk)
        self._filled = 0
        if self._beyond:
            self._take_chunk(CHUNK_BYTES)
            return
        frames.append((*begun, b"".join(self._chunks)))
        self._begun = None
        self._chunks = []
        self._chunk = bytearray()
