"""What one message, one fragment, one template and one stream of a hostile member may cost."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Fragment,
    ReplicaBatch,
    Reply,
    Request,
    Template,
)
from serve_grpc.protocol import wire
from serve_grpc.protocol.wire import WireError, encode_fragment
from tests.unit.sessions import STREAM, UNARY, fields, new_caller, new_replica, open_pair

MAX_S = 0.1
MiB = 2**20


Receive = Callable[[bytes], Any]


def new_caller_receive() -> Receive:
    """`receive` of a caller whose session is open."""
    return open_pair()[0].receive


def new_replica_receive() -> Receive:
    """`receive` of a replica whose session is open."""
    return open_pair()[1].receive


def refused(new_receive: Callable[[], Receive], message: bytes, reason: str = ".") -> None:
    """A session refuses `message` in 100 ms of CPU time, the best of three; each ends with it."""
    best = float("inf")
    for _ in range(3):
        receive = new_receive()
        begin = time.thread_time()
        with pytest.raises(WireError, match=reason):
            receive(message)
        best = min(best, time.thread_time() - begin)
        if best <= MAX_S:
            return
    raise AssertionError(f"{best} s")


def held_bytes(work: Callable[[], object]) -> int:
    """What is still allocated after `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


FIELDS = {"templates": 0x1A, "fragments": 0x22, "requests": 0x2A, "credits": 0x32, "replies": 0x2A}


@pytest.mark.parametrize("frame", ["templates", "fragments", "requests", "credits"])
@pytest.mark.parametrize("size", [64 * 1024, 4 * MiB])
def test_a_message_of_empty_frames_is_refused_by_a_replica(frame: str, size: int) -> None:
    refused(new_replica_receive, bytes((FIELDS[frame], 0)) * (size // 2), "frames in one message")


@pytest.mark.parametrize("frame", ["fragments", "replies"])
def test_a_message_of_empty_frames_is_refused_by_a_caller(frame: str) -> None:
    refused(new_caller_receive, bytes((FIELDS[frame] if frame == "replies" else 0x22, 0)) * 2 * MiB)


def test_a_small_message_of_empty_frames_is_quick_and_ends_the_session() -> None:
    refused(new_replica_receive, b"\x2a\x00" * (wire.HAND_DECODE_BYTES // 2), "is 0 or in use")


def test_packed_ids_are_counted() -> None:
    ids = range(1, wire.MAX_FRAMES + 2)
    refused(new_replica_receive, CallerBatch(cancels=ids).SerializeToString(), "cancels")
    refused(new_caller_receive, ReplicaBatch(rejected=ids).SerializeToString(), "rejections")


def test_fields_in_one_fragment_are_counted() -> None:
    inner = b"\x18\x00" * MiB
    refused(new_replica_receive, b"\x22" + wire._varint(len(inner)) + inner, "fields in a fragment")


@pytest.mark.parametrize("length", [2**20, 2**31, 2**32, 2**63, 2**64 - 1, 2**70])
@pytest.mark.parametrize("tag", [0x22, 0x2A, 0x12, 0x7A])
def test_lengths_that_run_past_the_message(tag: int, length: int) -> None:
    huge = bytes((tag,)) + wire._varint(length)
    for message in (huge + b"x" * 10, huge + b"x" * (wire.HAND_DECODE_BYTES + 1)):
        refused(new_replica_receive, message)


def test_a_message_over_the_limit_is_not_decoded() -> None:
    for new_receive in (new_caller_receive, new_replica_receive):
        refused(new_receive, bytes(wire.MAX_BATCH_BYTES + 1), "over")


def test_an_unproven_peer_may_say_little() -> None:
    refused(lambda: new_replica().receive, bytes(wire.MAX_HANDSHAKE_BYTES + 1), "before the proof")
    hello = CallerBatch()
    hello.hello.features.extend(["f"] * 30_000)
    refused(lambda: new_replica().receive, hello.SerializeToString(), "before the proof")


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_fragments_are_bounded_by_number(size: int) -> None:
    _, replica = open_pair(limit=1024 * 1024)
    many = b"".join(b"".join(map(bytes, encode_fragment(1, b"x" * size))) for _ in range(1000))

    def send() -> None:
        for _ in range(200_000 // 1000):
            replica.receive(many)

    def flood() -> None:
        if size == 0:  # nothing is kept of an empty one
            send()
            return
        with pytest.raises(WireError, match="pieces"):
            send()

    assert held_bytes(flood) < 16 * MiB


def test_a_small_fragment_does_not_keep_a_large_message() -> None:
    _, replica = open_pair()

    def flood() -> None:
        for call_id in range(1, 101):
            padding = Template(number=1, method="m" * 60_000).SerializeToString()
            frames = b"".join(b"\x1a" + wire._varint(len(padding)) + padding for _ in range(10))
            replica.receive(b"".join(map(bytes, encode_fragment(call_id, b"x"))) + frames)

    assert held_bytes(flood) < 4 * MiB


def test_unfinished_payloads_are_bounded() -> None:
    _, replica = open_pair(limit=MiB)

    def flood() -> None:
        for call_id in range(1, 1000):
            fragment = Fragment(id=call_id, data=b"x" * (MiB // 2))
            replica.receive(CallerBatch(fragments=[fragment]).SerializeToString())

    with pytest.raises(WireError, match="unfinished payloads"):
        flood()
    assert replica._assembler.total_bytes <= (wire.MAX_UNFINISHED_PAYLOADS + 1) * MiB


def test_a_flood_of_templates_is_bounded_in_number_and_size() -> None:
    large = Template(number=1, method="m" * wire.MAX_TEMPLATE_BYTES)
    refused(new_replica_receive, CallerBatch(templates=[large]).SerializeToString(), "template")
    many = CallerBatch(templates=[Template(number=i) for i in range(wire.MAX_TEMPLATES + 1)])
    refused(new_replica_receive, many.SerializeToString(), "templates")


@pytest.mark.parametrize("items", [2**32 - 1])
def test_credit_adds_up_without_overflow(items: int) -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM))
    replica.receive(caller.outbox.take())
    batch = CallerBatch()
    for _ in range(1000):
        batch.credits.add(id=call_id, items=items, bytes=items)
    arrival = replica.receive(batch.SerializeToString())
    assert sum(items_ for _, items_, _ in arrival.credits) == 1000 * items


@pytest.mark.parametrize("envelope", [UNARY, STREAM], ids=["unary", "stream"])
def test_a_replica_that_sends_items_without_credit_loses_its_session(envelope: Any) -> None:
    caller, _ = open_pair()
    credit = {"credit_items": 2, "credit_bytes": 100}
    call_id = caller.request("call", fields(envelope=envelope, **credit))
    item = ReplicaBatch(replies=[Reply(id=call_id, kind=Reply.ITEM, payload=b"x" * 10)])
    message = item.SerializeToString()
    if envelope is STREAM:
        for _ in range(2):
            assert len(caller.receive(message).events) == 1
        with pytest.raises(WireError, match="without credit"):
            caller.receive(message)
    else:
        with pytest.raises(WireError, match="without credit"):
            caller.receive(message)


def test_credit_is_of_items_and_of_bytes() -> None:
    caller, _ = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM, credit_items=9, credit_bytes=10))
    reply = Reply(id=call_id, kind=Reply.ITEM, payload=b"x" * 10)
    message = ReplicaBatch(replies=[reply]).SerializeToString()
    caller.receive(message)
    caller.grant(call_id, 1, 1)
    caller.receive(message)
    with pytest.raises(WireError, match="without credit"):
        caller.receive(message)


def test_duplicate_and_foreign_ids_end_the_session_or_nothing() -> None:
    request = CallerBatch(requests=[Request(id=7, template=1)]).SerializeToString()
    cancels = CallerBatch(cancels=[8, 2**64 - 1]).SerializeToString()

    def new_receive() -> Receive:
        _, replica = open_pair()
        replica.receive(CallerBatch(templates=[Template(number=1)]).SerializeToString())
        assert len(replica.receive(request).requests) == 1
        assert replica.receive(cancels).cancelled == []
        return replica.receive

    refused(new_receive, request, "in use")
    caller = new_caller()
    assert caller.calls == {}
