"""Frames as bytes: what goes into an outbox comes out of the messages, whole and in order.

Damage to a message gives another value or WireError, and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import CallerBatch, ReplicaBatch
from serve_grpc.payload import Payload, Segments, joined
from serve_grpc.protocol import wire
from serve_grpc.protocol.assembler import Assembler
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.places import Place
from serve_grpc.protocol.wire import WireError, decode_batch
from tests.fakes.memory import TableMemory
from tests.property.batches import caller_batches, damaged, replica_batches

pytestmark = pytest.mark.usefixtures("tiny_messages")

Frames = dict[int, list[bytes]]
Script = list[tuple[int, int, int]]
Batches = st.SearchStrategy[Any]

# (id, payload size, how many messages are taken first); sizes lie around the tiny limits.
_SIZES = st.integers(0, 70) | st.sampled_from([11, 12, 13, 19, 20, 21, 40, 41])
_TAKES = st.sampled_from([0, 0, 0, 1, 2])
SCRIPTS = st.lists(st.tuples(st.integers(1, 4), _SIZES, _TAKES), max_size=25)


def body(number: int, size: int) -> bytes:
    """A payload that no other frame of the script has."""
    return bytes((number * 7 + i) % 256 for i in range(size))


class Link:
    """An outbox and, behind its messages, an assembler."""

    def __init__(self, kind: type[Any], owners: str, memory: TableMemory | None = None) -> None:
        self.outbox: Outbox[Any] = Outbox(kind)
        self.outbox.memory = self.memory = memory
        self.assembler = Assembler(10**6, 10**6)
        self.received: Frames = defaultdict(list)
        self._kind = kind
        self._owners = owners

    def send(self, call_id: int, payload: Payload) -> None:
        """As the session machines do it."""
        outbox = self.outbox
        if len(payload) > wire.INLINE_BYTES:
            outbox.send_large(call_id, payload, self._adder(call_id, b""))
        elif outbox.has_large(call_id):
            outbox.send_after_large(call_id, self._adder(call_id, joined(payload)))
        else:
            self._adder(call_id, joined(payload))()

    def _adder(self, call_id: int, payload: bytes) -> Callable[[], None]:
        def add() -> None:
            getattr(self.outbox.batch, self._owners).add(id=call_id, payload=payload)
            self.outbox.added(len(payload))

        return add

    def carry(self) -> None:
        """One message from one end to the other."""
        is_empty = not self.outbox
        message = self.outbox.take()
        assert is_empty is (message == b"")
        assert len(message) < wire.BATCH_BYTES + wire.FRAGMENT_BYTES + 400
        batch, fragments = decode_batch(self._kind, message, self.memory)
        for call_id, data, _ in fragments:
            self.assembler.add(call_id, data)
        for frame in getattr(batch, self._owners):
            payload = joined(self.assembler.take(frame.id, frame.payload))
            self.received[frame.id].append(payload)


@pytest.mark.parametrize(("kind", "owners"), [(CallerBatch, "requests"), (ReplicaBatch, "replies")])
@settings(max_examples=400)
@given(script=SCRIPTS)
def test_payloads_of_an_id_arrive_whole_and_in_order(
    kind: type[Any], owners: str, script: Script
) -> None:
    link = Link(kind, owners)
    sent: Frames = defaultdict(list)
    for number, (call_id, size, messages) in enumerate(script):
        for _ in range(messages):
            link.carry()
        payload = body(number, size)
        sent[call_id].append(payload)
        link.send(call_id, payload)
    while link.outbox:
        link.carry()
    assert link.received == sent
    assert (link.outbox.queued_bytes, link.assembler.total_bytes) == (0, 0)


@pytest.mark.parametrize(("kind", "owners"), [(CallerBatch, "requests"), (ReplicaBatch, "replies")])
@settings(max_examples=400)
@given(script=SCRIPTS, data=st.data())
def test_what_lies_in_shared_memory_arrives_in_its_place(
    kind: type[Any], owners: str, script: Script, data: st.DataObject
) -> None:
    memory = TableMemory()
    link = Link(kind, owners, memory)
    sent: Frames = defaultdict(list)
    shared = 0
    for number, (call_id, size, messages) in enumerate(script):
        for _ in range(messages):
            link.carry()
        payload = body(number, size)
        sent[call_id].append(payload)
        cut = data.draw(st.integers(0, size))
        is_shared = data.draw(st.booleans())
        # As a serializer writes it: the bytes of the stream, and a buffer by itself.
        tail = memoryview(bytearray(payload[cut:])) if is_shared else payload[cut:]
        shared += is_shared and cut < size and size > wire.INLINE_BYTES
        link.send(call_id, Segments([part for part in (payload[:cut], tail) if part]))
    while link.outbox:
        link.carry()
    assert link.received == sent
    assert len(memory.lent) == shared
    assert (link.outbox.queued_bytes, link.assembler.total_bytes) == (0, 0)


@settings(max_examples=200)
@given(script=SCRIPTS, dropped=st.sets(st.integers(1, 4)))
def test_dropping_an_id_leaves_the_others_whole(script: Script, dropped: set[int]) -> None:
    link = Link(ReplicaBatch, "replies")
    sent: Frames = defaultdict(list)
    for number, (call_id, size, _) in enumerate(script):
        sent[call_id].append(body(number, size))
        link.send(call_id, sent[call_id][-1])
    link.carry()
    for call_id in dropped:
        link.outbox.drop_large(call_id)
    while link.outbox:
        link.carry()
    assert link.outbox.queued_bytes == 0
    for call_id in set(sent) - dropped:
        assert link.received[call_id] == sent[call_id]


both_sides = pytest.mark.parametrize(
    ("kind", "batches"),
    [(CallerBatch, caller_batches), (ReplicaBatch, replica_batches)],
    ids=["caller", "replica"],
)
# Messages of all sizes are decoded in both ways: whole, and with their fragments split off.
both_ways = pytest.mark.parametrize("threshold", [0, 10**9], ids=["by hand", "generated"])


class NamingMemory(TableMemory):
    """Has anything anywhere: the name of the place."""

    def borrow(self, place: Place) -> memoryview:
        return memoryview(repr(tuple(place)).encode())


def decoded(kind: type[Any], message: bytes, threshold: int) -> tuple[Any, list[Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "HAND_DECODE_BYTES", threshold)
        batch, fragments = decode_batch(kind, message, NamingMemory())
    batch.ClearField("fragments")
    return batch, [(call_id, bytes(data)) for call_id, data, _ in fragments]


@both_sides
@both_ways
@given(data=st.data())
def test_any_batch_is_decoded_as_the_generated_class_does(
    kind: type[Any], batches: Batches, threshold: int, data: st.DataObject
) -> None:
    batch = data.draw(batches)
    rest, fragments = decoded(kind, batch.SerializeToString(), threshold)
    assert fragments == [
        (f.id, repr((f.segment, f.offset, f.size)).encode() if f.segment else f.data)
        for f in batch.fragments
    ]
    batch.ClearField("fragments")
    assert rest == batch


@both_sides
@both_ways
@given(data=st.data())
def test_damage_gives_a_value_or_a_wire_error(
    kind: type[Any], batches: Batches, threshold: int, data: st.DataObject
) -> None:
    message = data.draw(batches).SerializeToString()
    received = data.draw(damaged(message) | st.binary(max_size=60))
    try:
        batch, fragments = decoded(kind, received, threshold)
    except WireError:
        return
    assert isinstance(batch, kind)
    in_the_message = [part for _, part in fragments if not part.startswith(b"(")]
    assert sum(map(len, in_the_message)) <= len(received)


@both_sides
@given(data=st.data())
def test_what_is_decoded_by_hand_is_what_the_generated_class_reads(
    kind: type[Any], batches: Batches, data: st.DataObject
) -> None:
    message = data.draw(batches.map(lambda batch: batch.SerializeToString()).flatmap(damaged))
    try:
        by_hand = decoded(kind, message, threshold=0)
    except WireError:
        return
    assert by_hand == decoded(kind, message, threshold=10**9)
