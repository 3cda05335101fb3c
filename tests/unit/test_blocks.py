"""Blocks of large payloads: filled as fragments come, used again, and given back in the end."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.payload import Segments, joined, pieces
from serve_grpc.protocol.assembler import Assembler
from serve_grpc.protocol.wire import WireError
from serve_grpc.replica.replies import SessionReplies
from serve_grpc.serialization import get_serializer
from serve_grpc.shared_memory.blocks import (
    BLOCK_BYTES,
    HEAP,
    BlockCache,
    is_block,
    joined_in_place,
)
from tests.ray.waiting import eventually
from tests.unit.sessions import (
    STREAM,
    UNARY,
    drain_into,
    fields,
    new_caller,
    new_replica,
    open_pair,
    shake_hands,
)

MIB = 1024 * 1024
ROOM = 64 * MIB


def array() -> np.ndarray:
    return np.arange(BLOCK_BYTES // 8 + 5, dtype=float)


def cut(data: bytes, step: int) -> list[bytes]:
    return [data[i : i + step] for i in range(0, len(data), step)]


def test_what_has_no_view_any_more_is_used_again() -> None:
    cache = BlockCache(ROOM)
    first = cache.new_block(BLOCK_BYTES)
    assert first is not None
    first[:3] = b"abc"
    part = first[1:2]
    del first
    assert cache.idle_bytes == 0  # a view of a view holds it
    del part
    assert cache.idle_bytes == BLOCK_BYTES
    again = cache.new_block(BLOCK_BYTES - 1)
    assert again is not None
    assert bytes(again[:3]) == b"abc"
    assert (cache.idle_bytes, len(again)) == (0, BLOCK_BYTES - 1)


def test_a_block_that_is_far_too_large_is_left_alone() -> None:
    cache = BlockCache(ROOM)
    cache.new_block(16 * MIB)
    small = cache.new_block(BLOCK_BYTES)
    assert cache.idle_bytes == 16 * MIB
    del small


def test_no_more_is_kept_than_allowed() -> None:
    cache = BlockCache(10 * MIB)
    blocks = [cache.new_block(4 * MIB) for _ in range(5)]
    del blocks
    assert cache.idle_bytes == 8 * MIB
    nothing = BlockCache(0)
    nothing.new_block(4 * MIB)
    assert nothing.idle_bytes == 0


def test_what_is_idle_for_long_is_given_back_and_what_is_in_use_is_not() -> None:
    cache = BlockCache(ROOM, idle_s=30.0)
    held = cache.new_block(BLOCK_BYTES)
    cache.new_block(BLOCK_BYTES)
    now = time.monotonic()
    cache.trim(now + 29)
    assert cache.idle_bytes == BLOCK_BYTES
    cache.trim(now + 31)
    assert cache.idle_bytes == 0
    assert held is not None
    held[:1] = b"x"


def test_idle_blocks_go_without_anybody_asking() -> None:
    cache = BlockCache(ROOM, idle_s=0.0, trim_s=0.01)
    for _ in range(2):  # also after the thread has ended
        cache.new_block(BLOCK_BYTES)
        eventually(lambda: cache.idle_bytes == 0)


def test_an_array_on_a_block_holds_it() -> None:
    cache = BlockCache(ROOM)
    block = cache.new_block(BLOCK_BYTES)
    assert block is not None
    block[:] = array().tobytes()[:BLOCK_BYTES]
    slice_ = np.frombuffer(block)[10:12]
    del block
    assert cache.idle_bytes == 0
    assert list(slice_) == [10.0, 11.0]


def test_bytes_are_kept_as_they_are_and_all_else_is_copied() -> None:
    data = bytes(BLOCK_BYTES)
    assert HEAP.keep(data).obj is data
    for size in (100, BLOCK_BYTES):
        mutable = bytearray(size)
        kept = HEAP.keep(memoryview(mutable))
        mutable[:1] = b"x"
        assert kept.readonly
        assert kept[0] == 0


@pytest.mark.parametrize("size", [10, BLOCK_BYTES])
def test_what_is_joined_may_be_written(size: int) -> None:
    views = [memoryview(b"a" * size), memoryview(b"b" * 7)]
    made = memoryview(joined_in_place(views))
    assert bytes(made) == b"a" * size + b"b" * 7
    made[0] = 0


# ------------------------------------------------------------ fragments


@pytest.mark.parametrize("step", [MIB, MIB + 1, 3 * MIB, BLOCK_BYTES])
def test_a_piece_whose_size_is_told_lies_in_one_block(step: int) -> None:
    assembler = Assembler(ROOM, ROOM)
    data = array().tobytes()
    assembler.add(1, b"head")
    for number, part in enumerate(cut(data, step)):
        assembler.add(1, part, 0 if number else len(data))
    assert assembler.total_bytes == 4 + len(data)
    payload = assembler.take(1, b"tail")
    head, block, tail = pieces(payload)
    assert (head, tail) == (b"head", b"tail")
    assert is_block(block)
    assert bytes(block) == data
    assert assembler.total_bytes == 0


@pytest.mark.parametrize("claimed", [BLOCK_BYTES, 2 * BLOCK_BYTES, 2**63, ROOM])
def test_a_size_that_is_not_true_changes_nothing(claimed: int) -> None:
    assembler = Assembler(ROOM, ROOM)
    data = array().tobytes()
    parts = cut(data, MIB)
    assembler.add(1, parts[0], claimed)
    for part in parts[1:]:
        assembler.add(1, part, claimed)
    payload = assembler.take(1, b"")
    assert (joined(payload), len(payload)) == (data, len(data))
    assert assembler.total_bytes == 0


def test_a_block_counts_in_full_before_it_is_filled() -> None:
    assembler = Assembler(ROOM, 3 * BLOCK_BYTES)
    for call_id in (1, 2, 3):
        assembler.add(call_id, b"x", BLOCK_BYTES)
    assert assembler.total_bytes == 3 * BLOCK_BYTES
    with pytest.raises(WireError, match="bytes of unfinished payloads"):
        assembler.add(4, b"x", BLOCK_BYTES)


def test_a_block_goes_with_its_call() -> None:
    assembler = Assembler(ROOM, ROOM)
    assembler.add(1, b"x", BLOCK_BYTES)
    assembler.discard(1)
    assembler.add(1, b"y")
    assert (assembler.take(1, b"").parts, assembler.total_bytes) == ([b"y"], 0)  # type: ignore[union-attr]
    assembler.add(2, b"x", BLOCK_BYTES)
    assembler.clear()
    assert assembler.total_bytes == 0


@pytest.mark.parametrize("is_read_once", [True, False])
def test_only_who_reads_alone_may_write_to_a_block(is_read_once: bool) -> None:
    assembler = Assembler(ROOM, ROOM)
    assembler.add(1, bytes(BLOCK_BYTES), BLOCK_BYTES)
    (block,) = pieces(assembler.take(1, b"", is_read_once=is_read_once))
    assert memoryview(block).readonly is not is_read_once


# ------------------------------------------------------------ sessions


def carried(payload: Any) -> Any:
    """A request's payload, as the replica has it."""
    caller, replica = open_pair(ROOM)
    caller.request("call", fields(payload))
    requests = []
    while caller.outbox:
        requests += replica.receive(caller.outbox.take()).requests
    (request,) = requests
    return request.payload


def test_an_array_lies_where_its_fragments_were_copied_to() -> None:
    serializer = get_serializer("cloudpickle")
    sent = serializer.dump_request((array(), array()[:9000]), {}, HEAP)
    assert isinstance(sent, Segments)
    assert sent.has_buffers
    arrived = carried(sent)
    blocks = [part for part in pieces(arrived) if is_block(part)]
    assert [len(block) for block in blocks] == [array().nbytes]
    (large, small), _ = serializer.load_request(arrived)
    assert np.array_equal(large, array())
    assert np.array_equal(small, array()[:9000])
    large[0] = 42.0
    small[0] = 42.0
    assert np.frombuffer(blocks[0])[0] == 42.0


def test_a_result_that_is_loaded_again_is_as_it_was_sent() -> None:
    serializer = get_serializer("cloudpickle")
    assembler = Assembler(ROOM, ROOM)
    for piece in pieces(serializer.dump_response(array(), HEAP)):
        assembler.add(1, piece, len(piece))
    payload = assembler.take(1, b"", is_read_once=False)
    first = serializer.load_response(payload)
    first[:] = 0
    second = serializer.load_response(payload)
    assert second.flags.writeable
    assert np.array_equal(second, array())


@pytest.mark.parametrize("is_item", [False, True])
def test_a_result_is_kept_for_more_readers_and_an_item_is_not(is_item: bool) -> None:
    serializer = get_serializer("cloudpickle")
    caller, replica = open_pair(ROOM)
    caller.request("call", fields(b"", STREAM if is_item else UNARY))
    replica.receive(caller.outbox.take())
    assert replica.caller_reads_buffers
    kind = Reply.ITEM if is_item else Reply.RESULT
    replica.reply(1, kind, serializer.dump_response(array(), HEAP))
    events = [e for received in drain_into(replica.outbox, caller.receive) for e in received.events]
    ((_, _, payload, _),) = events
    (block,) = [part for part in pieces(payload) if is_block(part)]
    assert block.readonly is not is_item
    value = serializer.load_response(payload)
    value[0] = 42.0
    assert bool(np.frombuffer(block)[0] == 42.0) is is_item


def test_a_caller_that_does_not_say_so_reads_plain_pickles() -> None:
    caller, replica = new_caller(), new_replica()
    caller.outbox.batch.hello.features.remove("buffers")
    shake_hands(caller, replica)
    assert not replica.caller_reads_buffers
    pump: Any = SimpleNamespace(session=replica)
    assert SessionReplies(pump, lambda *_: None).memory is None
