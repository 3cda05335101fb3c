"""Batches and bytes: decoding, and fragments of large payloads.

What two session machines exchange is one protobuf message at a time, a batch. Small frames are
built straight into the generated class, which is written in C; payloads over `INLINE_BYTES` never
enter a protobuf object and are cut into fragments that this module encodes by hand (putting 10 MB
through a protobuf field costs five times the copy itself: docs/decisions/0002-wire-format.md).
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from serve_grpc._generated.replica_pb2 import CallerBatch, ReplicaBatch
from serve_grpc.protocol.places import LinkMemory, Place

__all__ = [
    "BATCH_BYTES",
    "FRAGMENT_BYTES",
    "INLINE_BYTES",
    "MAX_BATCH_BYTES",
    "MAX_FRAMES",
    "MAX_HANDSHAKE_BYTES",
    "MAX_INPUTS",
    "MAX_INPUT_CREDIT_BYTES",
    "MAX_INPUT_CREDIT_ITEMS",
    "MAX_INTERLEAVED",
    "MAX_STORED_BYTES",
    "MAX_TEMPLATES",
    "MAX_TEMPLATE_BYTES",
    "MAX_UNFINISHED_IDS",
    "MAX_UNFINISHED_PAYLOADS",
    "Fragment",
    "WireError",
    "decode_batch",
    "encode_fragment",
    "encode_place",
]

INLINE_BYTES = 16 * 1024
"""Largest payload that travels inside its request or reply."""
FRAGMENT_BYTES = 1024 * 1024
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
"""Fields of one fragment; version 1 has five."""
MAX_HANDSHAKE_BYTES = 64 * 1024
"""Largest message of a peer that has not proved itself."""
MAX_TEMPLATES = 1024
"""Envelopes a session remembers; after that, their numbers are given out anew."""
MAX_TEMPLATE_BYTES = 64 * 1024
"""Largest envelope that a session remembers."""
MAX_INPUTS = 64
"""Streams among the arguments of one request."""
MAX_INPUT_CREDIT_ITEMS = 65_536
MAX_INPUT_CREDIT_BYTES = 64 * 1024 * 1024
"""What a caller sends ahead of one of them at most, whatever the replica allows."""
MAX_INTERLEAVED = 8
"""Large payloads that leave side by side; the next one starts when one of them is out."""
MAX_UNFINISHED_PAYLOADS = 2 * MAX_INTERLEAVED
"""Unfinished payloads of the largest size that one side of a session holds for the other."""
MAX_UNFINISHED_IDS = 4096
"""Ids with unfinished payloads of any size that one side of a session holds."""
MAX_STORED_BYTES = 2**63 - 1
"""Size that a payload in Ray's object store may claim: what Python takes for a length."""

# A tag is a field's number and, in its three lowest bits, its wire type: 0 is a varint, 2 has a
# length. The numbers are those of replica.proto; a test compares them with what protobuf writes.
_FRAGMENTS_TAG = 4 << 3 | 2  # field `fragments` of both batches
_ID_TAG = 1 << 3
_DATA_TAG = 2 << 3 | 2
_SIZE_TAG = 5 << 3
_NOWHERE = Place(0, 0, 0)
_PLACE_TAGS = {3 << 3: "segment", 4 << 3: "offset", _SIZE_TAG: "size"}

BatchT = TypeVar("BatchT", CallerBatch, ReplicaBatch)
Fragment = tuple[int, "bytes | memoryview", int]
"""Id, bytes, and the size of the piece that begins with them, or 0."""


class WireError(Exception):
    """The peer's bytes are not a batch; the session cannot go on."""


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
        # Ten bytes at most, as protobuf reads it: a longer one would make an integer of any size.
        if position >= len(data) or shift > 63:
            raise WireError("a varint runs past the end of the message")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def encode_fragment(
    call_id: int, data: bytes | memoryview, piece_size: int = 0
) -> tuple[bytes, bytes | memoryview]:
    """Header and data of one `fragments` field, read as what protobuf writes.

    Args:
        call_id: Of its payload.
        data: Bytes of it.
        piece_size: Of the piece that begins with `data`, if the receiver should know.
    """
    # Fields in the order of their numbers, as protobuf writes them, but for the size, which would
    # stand behind the data. It would leave out an id of 0, which is no id
    # (`CallerSession._next_id`).
    size = bytes((_SIZE_TAG,)) + _varint(piece_size) if piece_size else b""
    inner = b"\x08" + _varint(call_id) + size + bytes((_DATA_TAG,)) + _varint(len(data))
    header = bytes((_FRAGMENTS_TAG,)) + _varint(len(inner) + len(data)) + inner
    return header, data


def encode_place(call_id: int, place: Place) -> bytes:
    """One `fragments` field whose bytes are elsewhere, equal to what protobuf writes."""
    inner = b"\x08" + _varint(call_id)
    for tag, value in zip(_PLACE_TAGS, place, strict=True):
        if value:  # protobuf writes no zero
            inner += bytes((tag,)) + _varint(value)
    return bytes((_FRAGMENTS_TAG,)) + _varint(len(inner)) + inner


def decode_batch(
    kind: type[BatchT], data: bytes, memory: LinkMemory | None = None
) -> tuple[BatchT, list[Fragment]]:
    """Parse one message.

    Args:
        kind: What it should be.
        data: As it came.
        memory: Where fragments may lie that are not in the message.

    Returns:
        The batch and its fragments; the batch's own `fragments` field is empty or repeats them and
        is not to be read.

    Raises:
        WireError: The bytes are not a batch of this kind, or over a limit.
    """
    if len(data) > MAX_BATCH_BYTES:
        raise WireError(f"a message of {len(data)} bytes, over {MAX_BATCH_BYTES}")
    try:
        # A small message cannot hold much, whatever it says, and protobuf's decoder is in C: it is
        # done before a look at the fields would be, here.
        if len(data) <= HAND_DECODE_BYTES:
            batch = kind.FromString(data)
            fragments = batch.fragments
            return batch, [_fragment_of(f, memory) for f in fragments] if fragments else []
        rest, split = _split_fragments(memoryview(data), memory)
        return kind.FromString(rest), split
    except DecodeError as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error


def _fragment_of(fragment: Any, memory: LinkMemory | None) -> Fragment:
    if fragment.segment:
        place = Place(fragment.segment, fragment.offset, fragment.size)
        return fragment.id, _borrowed(place, memory), 0
    return fragment.id, fragment.data, fragment.size


def _borrowed(place: Place, memory: LinkMemory | None) -> memoryview:
    if memory is None:
        raise WireError("a fragment in shared memory, on a link that has none")
    try:
        return memory.borrow(place)
    except ValueError as error:
        raise WireError(f"no fragment at {place}: {error}") from error


def _split_fragments(data: memoryview, memory: LinkMemory | None) -> tuple[bytes, list[Fragment]]:
    fragments: list[Fragment] = []
    rest: list[memoryview] = []
    position = 0
    while position < len(data):
        # Before protobuf sees them: two bytes of an empty frame become an object of a hundred.
        if len(fragments) + len(rest) >= MAX_FRAMES:
            raise WireError(f"over {MAX_FRAMES} frames in one message")
        start = position
        tag, position = _read_varint(data, position)
        end = _skip_field(data, tag, position)
        if tag == _FRAGMENTS_TAG:
            _, position = _read_varint(data, position)
            call_id, part, place = _read_fragment(data[position:end])
            if place is not _NOWHERE and place.segment:
                fragments.append((call_id, _borrowed(place, memory), 0))
            else:
                # A view keeps the whole message in memory: a small one would keep more than it has.
                kept = part if 2 * len(part) >= len(data) else bytes(part)
                fragments.append((call_id, kept, place.size))
        else:
            # With its tag: whole fields side by side are a message again.
            rest.append(data[start:end])
        position = end
    return b"".join(rest), fragments


def _read_fragment(data: memoryview) -> tuple[int, memoryview, Place]:
    call_id, payload, position, fields = 0, data[:0], 0, 0
    place: dict[str, int] = {}
    while position < len(data):
        fields += 1
        # Each costs a turn of this loop, in Python, and there is room for two million in a message.
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
        elif tag in _PLACE_TAGS:
            place[_PLACE_TAGS[tag]], position = _read_varint(data, position)
        else:  # a field of a newer version
            position = _skip_field(data, tag, position)
    if not place:  # most of them
        return call_id, payload, _NOWHERE
    # 32 bits of it count, as protobuf reads the field.
    segment = place.get("segment", 0) & 0xFFFF_FFFF
    return call_id, payload, Place(segment, place.get("offset", 0), place.get("size", 0))


def _skip_field(data: memoryview, tag: int, position: int) -> int:
    """Position behind the value of a field."""
    wire_type = tag & 7
    # As in protobuf: numbers of fields begin at 1, and a tag has 32 bits.
    if not 8 <= tag < 2**32:
        raise WireError(f"{tag} is no tag of a field")
    if wire_type == 0:
        return _read_varint(data, position)[1]
    if wire_type == 2:
        length, position = _read_varint(data, position)
        end = position + length
    elif wire_type in (1, 5):
        end = position + (8 if wire_type == 1 else 4)
    else:  # groups, which proto3 does not have
        raise WireError(f"wire type {wire_type} is not in use")
    if end > len(data):
        raise WireError("a field runs past its end")
    return end
