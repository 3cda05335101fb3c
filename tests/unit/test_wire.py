"""Batches and bytes: what is written by hand equals the generated classes, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Credit,
    Fragment,
    Hello,
    ReplicaBatch,
    Reply,
    Request,
)
from serve_grpc.payload import joined
from serve_grpc.protocol import wire
from serve_grpc.protocol.assembler import Assembler, PayloadOverflow
from serve_grpc.protocol.places import Place
from serve_grpc.protocol.wire import WireError, decode_batch
from tests.fakes.memory import TableMemory

LARGE = wire.HAND_DECODE_BYTES + 1
both_kinds = pytest.mark.parametrize("kind", [CallerBatch, ReplicaBatch])
# Fields and wire types that no version of the schema has defined yet.
UNKNOWN_FIELDS = {
    "varint": b"\xf8\x01\xac\x02",
    "fixed64": b"\xf9\x01" + b"\x01" * 8,
    "bytes": b"\xfa\x01\x03abc",
    "fixed32": b"\xfd\x01" + b"\x01" * 4,
}


def plain(fragments: list[tuple[int, bytes | memoryview, int]]) -> list[tuple[int, bytes]]:
    return [(call_id, bytes(data)) for call_id, data, _ in fragments]


@both_kinds
@pytest.mark.parametrize("size", [1, 127, 128, 300, 16_383, 16_384, 70_000])
@pytest.mark.parametrize("call_id", [1, 127, 128, 16_384, 2**32, 2**64 - 1])
def test_a_fragment_is_written_as_the_generated_class_writes_it(
    kind: type[Any], size: int, call_id: int
) -> None:
    data = bytes(i % 251 for i in range(size))
    expected = kind(fragments=[Fragment(id=call_id, data=data)]).SerializeToString()
    assert b"".join(wire.encode_fragment(call_id, data)) == expected
    assert b"".join(wire.encode_fragment(call_id, memoryview(data))) == expected


@both_kinds
@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("piece_size", [1, 128, 2**32, 2**64 - 1])
def test_the_size_of_a_piece_is_read_as_protobuf_reads_it(
    kind: type[Any], size: int, piece_size: int
) -> None:
    message = b"".join(wire.encode_fragment(7, b"x" * size, piece_size))
    expected = Fragment(id=7, data=b"x" * size, size=piece_size)
    assert list(kind.FromString(message).fragments) == [expected]
    for written in (message, kind(fragments=[expected]).SerializeToString()):
        _, ((call_id, data, begun),) = decode_batch(kind, written)
        assert (call_id, bytes(data), begun) == (7, b"x" * size, piece_size)


@both_kinds
@pytest.mark.parametrize("offset", [0, 4096, 2**63])
@pytest.mark.parametrize("call_id", [1, 127, 128, 2**64 - 1])
def test_a_place_is_written_as_the_generated_class_writes_it(
    kind: type[Any], offset: int, call_id: int
) -> None:
    place = Place(3, offset, 70_000)
    fragment = Fragment(id=call_id, segment=3, offset=offset, size=70_000)
    assert wire.encode_place(call_id, place) == kind(fragments=[fragment]).SerializeToString()


@pytest.mark.parametrize("beside", [b"", b"b" * LARGE], ids=["small", "large"])
def test_a_place_breaks_a_session_without_shared_memory(beside: bytes) -> None:
    batch = CallerBatch(fragments=[Fragment(id=1, segment=1, size=5), Fragment(id=2, data=beside)])
    with pytest.raises(WireError, match="on a link that has none"):
        decode_batch(CallerBatch, batch.SerializeToString())


@pytest.mark.parametrize("beside", [b"", b"b" * LARGE], ids=["small", "large"])
def test_a_place_that_is_not_there_breaks_the_session(beside: bytes) -> None:
    batch = CallerBatch(fragments=[Fragment(id=1, segment=9, size=5), Fragment(id=2, data=beside)])
    with pytest.raises(WireError, match="there is no such range"):
        decode_batch(CallerBatch, batch.SerializeToString(), TableMemory())


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
def test_a_message_gives_back_its_batch_and_its_fragments(size: int) -> None:
    batch = CallerBatch(
        hello=Hello(replica_id="r"),
        requests=[Request(id=3, payload=b"tail")],
        credits=[Credit(id=1, items=2, bytes=3)],
        cancels=[1, 2],
        ping=9,
    )
    sent = [(1, b"a" * size), (2, b"b"), (1, b"c" * size)]
    fragments = b"".join(b"".join(wire.encode_fragment(*fragment)) for fragment in sent)
    rest, received = decode_batch(CallerBatch, fragments + batch.SerializeToString())
    assert plain(received) == sent
    rest.ClearField("fragments")
    assert rest == batch


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
def test_fragments_are_found_wherever_they_stand(size: int) -> None:
    reply = ReplicaBatch(replies=[Reply(id=1)]).SerializeToString()
    load = ReplicaBatch(ongoing=4, slot_free=True).SerializeToString()
    fragment = b"".join(wire.encode_fragment(7, b"x" * size))
    batch, fragments = decode_batch(ReplicaBatch, reply + fragment + load + fragment)
    assert plain(fragments) == [(7, b"x" * size)] * 2
    assert (batch.replies[0].id, batch.ongoing, batch.slot_free) == (1, 4, True)


def test_a_large_payload_is_not_copied_when_it_is_read() -> None:
    message = b"".join(wire.encode_fragment(7, b"x" * LARGE))
    _, fragments = decode_batch(CallerBatch, message)
    assert isinstance(fragments[0][1], memoryview)
    assert fragments[0][1].obj is message


@both_kinds
@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("unknown", UNKNOWN_FIELDS.values(), ids=list(UNKNOWN_FIELDS))
def test_a_field_of_a_newer_version_is_ignored(kind: type[Any], size: int, unknown: bytes) -> None:
    fragment = b"".join(wire.encode_fragment(7, b"x" * size))
    _, fragments = decode_batch(kind, unknown + fragment + unknown)
    assert plain(fragments) == [(7, b"x" * size)]


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("unknown", UNKNOWN_FIELDS.values(), ids=list(UNKNOWN_FIELDS))
def test_a_field_of_a_newer_version_inside_a_fragment_is_ignored(size: int, unknown: bytes) -> None:
    inner = unknown + Fragment(id=7, data=b"x" * size).SerializeToString() + unknown
    # The same bytes as a message of another kind with one length-delimited field 4.
    message = b"\x22" + wire._varint(len(inner)) + inner
    _, fragments = decode_batch(CallerBatch, message)
    assert plain(fragments) == [(7, b"x" * size)]


@both_kinds
@pytest.mark.parametrize(
    "message",
    [
        b"\x22",
        b"\x22\x80",
        b"\x22\x05abc",
        b"\x22\x02\x08\x80",
        b"\x22\x03\x12\x05a",
        b"\x80" * 11,
        b"\x00\x00",
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
    ids=bytes.hex,
)
@pytest.mark.parametrize("padding", [b"", b"\xfa\x01\x80\x80\x02" + b"x" * 32768])
def test_bytes_that_are_no_batch_are_refused(
    kind: type[Any], message: bytes, padding: bytes
) -> None:
    with pytest.raises(WireError):
        decode_batch(kind, padding + message)


def test_text_that_is_not_utf8_is_refused() -> None:
    message = CallerBatch(hello=Hello(replica_id="ab")).SerializeToString()
    with pytest.raises(WireError):
        decode_batch(CallerBatch, message.replace(b"ab", b"\xff\xfe"))


def test_parts_are_joined_in_order_with_the_tail_last() -> None:
    assembler = Assembler(100, 1000)
    for call_id, part in [(1, b"a"), (2, b"x"), (1, memoryview(b"b"))]:
        assembler.add(call_id, part)
    assert assembler.total_bytes == 3
    assert joined(assembler.take(1, b"c")) == b"abc"
    assert joined(assembler.take(2, b"")) == b"x"
    assert assembler.total_bytes == 0


def test_a_payload_without_parts_is_its_tail() -> None:
    assert joined(Assembler(100, 1000).take(1, b"all")) == b"all"


def test_a_taken_payload_leaves_nothing_for_the_next_of_its_id() -> None:
    assembler = Assembler(100, 1000)
    assembler.add(1, b"first")
    assembler.take(1, b"")
    assert joined(assembler.take(1, b"second")) == b"second"


@pytest.mark.parametrize("parts", [[11], [6, 5], [10, 1, 50]])
def test_a_payload_over_the_limit_is_dropped_as_it_grows_and_told_once(parts: list[int]) -> None:
    assembler = Assembler(10, 1000)
    for size in parts:
        assembler.add(1, b"x" * size)
    assert assembler.total_bytes == 0
    with pytest.raises(PayloadOverflow) as raised:
        assembler.take(1, b"tail")
    assert raised.value.size == sum(parts) + 4
    assert joined(assembler.take(1, b"next")) == b"next"


def test_a_tail_alone_may_be_over_the_limit() -> None:
    with pytest.raises(PayloadOverflow) as raised:
        Assembler(10, 1000).take(1, b"x" * 11)
    assert raised.value.size == 11


def test_a_payload_of_exactly_the_limit_passes() -> None:
    assembler = Assembler(10, 1000)
    assembler.add(1, b"x" * 10)
    assert joined(assembler.take(1, b"")) == b"x" * 10


def test_a_discarded_payload_frees_its_bytes() -> None:
    assembler = Assembler(10, 1000)
    assembler.add(1, b"x" * 10)
    assembler.discard(1)
    assembler.discard(2)
    assert assembler.total_bytes == 0
    assert joined(assembler.take(1, b"")) == b""


def test_unfinished_payloads_are_bounded_in_bytes() -> None:
    assembler = Assembler(10, 25)
    assembler.add(1, b"x" * 10)
    assembler.add(2, b"x" * 10)
    with pytest.raises(WireError, match="25"):
        assembler.add(3, b"x" * 10)


def test_unfinished_payloads_are_bounded_in_number() -> None:
    assembler = Assembler(10, 10**9)
    for call_id in range(wire.MAX_UNFINISHED_IDS):
        assembler.add(call_id, b"")
    with pytest.raises(WireError, match="unfinished"):
        assembler.add(wire.MAX_UNFINISHED_IDS, b"")
