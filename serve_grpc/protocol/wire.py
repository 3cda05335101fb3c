"""Batches and bytes: decoding, and fragments of large payloads.

What two session machines exchange is one protobuf message at a time, a batch. Small frames are
built straight into the generated class, which is written in C; payloads over `INLINE_BYTES` never
enter a protobuf object and are cut into fragments that this module encodes by hand (putting 10 MB
through a protobuf field costs five times the copy itself: docs/decisions/0002-wire-format.md).
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError

from serve_grpc._generated.replica_pb2 import CallerBatch, ReplicaBatch
from serve_grpc.payload import Payload, Segments

__all__ = [
    "BATCH_BYTES",
    "FRAGMENT_BYTES",
    "INLINE_BYTES",
    "MAX_BATCH_BYTES",
    "MAX_FRAMES",
    "MAX_HANDSHAKE_BYTES",
    "MAX_INTERLEAVED",
    "MAX_TEMPLATES",
    "MAX_TEMPLATE_BYTES",
    "MAX_UNFINISHED_PAYLOADS",
    "Assembler",
    "PayloadOverflow",
    "WireError",
    "decode_batch",
    "encode_fragment",
]

INLINE_BYTES = 16 * 1024
"""Largest payload that travels inside its request or reply."""
FRAGMENT_BYTES = 512 * 1024
"""Most payload bytes of fragments in one message; bounds how long a small frame waits."""
BATCH_BYTES = 64 * 1024
"""A batch of small frames is closed when it reaches about this size."""
HAND_DECODE_BYTES = 2 * INLINE_BYTES
"""Messages above this size may hold fragments worth keeping out of protobuf objects."""
FRAME_OVERHEAD_BYTES = 96
"""What a frame adds to its payload, for the estimate of a batch's size."""
MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Largest message of a session; ours are far below, other peers may send payloads inline."""
MAX_FRAMES = HAND_DECODE_BYTES // 2
"""Frames in one message. A frame takes two bytes at least, so small messages need no count."""
MAX_FRAGMENT_FIELDS = 16
"""Fields of one fragment; version 1 has two."""
MAX_HANDSHAKE_BYTES = 64 * 1024
"""Largest message of a peer that has not proved itself."""
MAX_TEMPLATES = 1024
"""Envelopes a session remembers; after that, their numbers are given out anew."""
MAX_TEMPLATE_BYTES = 64 * 1024
"""Largest envelope that a session remembers."""
MAX_INTERLEAVED = 8
"""Large payloads that leave side by side; the next one starts when one of them is out."""
MAX_UNFINISHED_PAYLOADS = 2 * MAX_INTERLEAVED
"""Unfinished payloads of the largest size that one side of a session holds for the other."""
MAX_UNFINISHED_IDS = 4096
"""Ids with unfinished payloads of any size that one side of a session holds."""
BYTES_PER_PIECE = 1024
"""Unfinished payloads in smaller pieces than these, on average, are held up to a lower limit: a
piece costs memory of its own."""

_FRAGMENTS_TAG = 4 << 3 | 2  # field `fragments` of both batches, length-delimited
_ID_TAG = 1 << 3
_DATA_TAG = 2 << 3 | 2

BatchT = TypeVar("BatchT", CallerBatch, ReplicaBatch)


class WireError(Exception):
    """The peer's bytes are not a batch; the session cannot go on."""


class PayloadOverflow(Exception):
    """The fragments of one id are over the limit; that id's call fails."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise WireError("a varint runs past the end of the message")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def encode_fragment(call_id: int, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
    """Header and data of one `fragments` field, equal to what protobuf writes."""
    inner = b"\x08" + _varint(call_id) + bytes((_DATA_TAG,)) + _varint(len(data))
    header = bytes((_FRAGMENTS_TAG,)) + _varint(len(inner) + len(data)) + inner
    return header, data


def decode_batch(
    kind: type[BatchT], data: bytes
) -> tuple[BatchT, list[tuple[int, bytes | memoryview]]]:
    """Parse one message.

    Returns:
        The batch and its fragments as (id, data); the batch's own `fragments` field is empty or
        repeats them and is not to be read.

    Raises:
        WireError: The bytes are not a batch of this kind, or over a limit.
    """
    if len(data) > MAX_BATCH_BYTES:
        raise WireError(f"a message of {len(data)} bytes, over {MAX_BATCH_BYTES}")
    try:
        if len(data) <= HAND_DECODE_BYTES:
            batch = kind.FromString(data)
            fragments = batch.fragments
            return batch, [(f.id, f.data) for f in fragments] if fragments else []
        rest, split = _split_fragments(memoryview(data))
        return kind.FromString(rest), split
    except DecodeError as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error


def _split_fragments(data: memoryview) -> tuple[bytes, list[tuple[int, bytes | memoryview]]]:
    fragments: list[tuple[int, bytes | memoryview]] = []
    rest: list[memoryview] = []
    position = 0
    while position < len(data):
        if len(fragments) + len(rest) >= MAX_FRAMES:
            raise WireError(f"over {MAX_FRAMES} frames in one message")
        start = position
        tag, position = _read_varint(data, position)
        end = _skip_field(data, tag, position)
        if tag == _FRAGMENTS_TAG:
            _, position = _read_varint(data, position)
            call_id, part = _read_fragment(data[position:end])
            # A view keeps the whole message in memory: a small one would keep more than it holds.
            fragments.append((call_id, part if 2 * len(part) >= len(data) else bytes(part)))
        else:
            rest.append(data[start:end])
        position = end
    return b"".join(rest), fragments


def _read_fragment(data: memoryview) -> tuple[int, memoryview]:
    call_id, payload, position, fields = 0, data[:0], 0, 0
    while position < len(data):
        fields += 1
        if fields > MAX_FRAGMENT_FIELDS:
            raise WireError(f"over {MAX_FRAGMENT_FIELDS} fields in a fragment")
        tag, position = _read_varint(data, position)
        if tag == _ID_TAG:
            call_id, position = _read_varint(data, position)
        elif tag == _DATA_TAG:
            end = _skip_field(data, tag, position)
            _, position = _read_varint(data, position)
            payload = data[position:end]
            position = end
        else:  # a field of a newer version
            position = _skip_field(data, tag, position)
    return call_id, payload


def _skip_field(data: memoryview, tag: int, position: int) -> int:
    """Position behind the value of a field."""
    wire_type = tag & 7
    if not 8 <= tag < 2**32:
        raise WireError(f"{tag} is no tag of a field")
    if wire_type == 0:
        return _read_varint(data, position)[1]
    if wire_type == 2:
        length, position = _read_varint(data, position)
        end = position + length
    elif wire_type in (1, 5):
        end = position + (8 if wire_type == 1 else 4)
    else:
        raise WireError(f"wire type {wire_type} is not in use")
    if end > len(data):
        raise WireError("a field runs past its end")
    return end


class Assembler:
    """Collects fragments until the frame that owns them arrives."""

    def __init__(self, max_payload_bytes: int, max_total_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._max_total_bytes = max_total_bytes
        self._max_pieces = MAX_UNFINISHED_IDS + max_total_bytes // BYTES_PER_PIECE
        self._pieces = 0
        self._parts: dict[int, list[bytes | memoryview]] = {}
        self._sizes: dict[int, int] = {}
        self.total_bytes = 0

    def add(self, call_id: int, data: bytes | memoryview) -> None:
        """Keep one fragment.

        A payload over the limit is dropped as it grows; `take` then reports it.

        Raises:
            WireError: The peer holds more unfinished payload than allowed.
        """
        if call_id not in self._sizes and len(self._sizes) >= MAX_UNFINISHED_IDS:
            raise WireError(f"over {MAX_UNFINISHED_IDS} unfinished payloads")
        size = self._sizes.get(call_id, 0) + len(data)
        self._sizes[call_id] = size
        if size > self._max_payload_bytes:
            self._forget_parts(call_id)
            return
        if not data:
            return
        self._pieces += 1
        if self._pieces > self._max_pieces:
            raise WireError(f"unfinished payloads in over {self._max_pieces} pieces")
        self._parts.setdefault(call_id, []).append(data)
        self.total_bytes += len(data)
        if self.total_bytes > self._max_total_bytes:
            raise WireError(f"over {self._max_total_bytes} bytes of unfinished payloads")

    def take(self, call_id: int, tail: bytes) -> Payload:
        """The whole payload of `call_id`, which ends with `tail`.

        Raises:
            PayloadOverflow: It was over the limit.
        """
        if call_id not in self._sizes:
            if len(tail) > self._max_payload_bytes:
                raise PayloadOverflow(len(tail))
            return tail
        size = self._sizes.pop(call_id) + len(tail)
        parts = self._forget_parts(call_id)
        if size > self._max_payload_bytes:
            raise PayloadOverflow(size)
        return Segments((*parts, tail) if tail else parts)

    def discard(self, call_id: int) -> None:
        """Drop what is held for a call that is over."""
        if call_id in self._sizes:
            del self._sizes[call_id]
            self._forget_parts(call_id)

    def clear(self) -> None:
        """Drop everything held."""
        self._parts.clear()
        self._sizes.clear()
        self.total_bytes = self._pieces = 0

    def _forget_parts(self, call_id: int) -> list[bytes | memoryview]:
        parts = self._parts.pop(call_id, [])
        self._pieces -= len(parts)
        self.total_bytes -= sum(map(len, parts))
        return parts
