"""Payloads in shared memory: agreed on in the handshake, and only where a link has some."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.payload import Segments, joined
from serve_grpc.protocol.wire import INLINE_BYTES
from tests.fakes.memory import TableMemory
from tests.unit.sessions import drain_into, fields, new_caller, new_replica, shake_hands

SIZE = 4 * INLINE_BYTES
BOTH, ONE_SIDED = (True, True), [(True, False), (False, True), (False, False)]


def payload() -> Segments:
    """Bytes of a stream, and a buffer that can be lent."""
    return Segments([b"head", memoryview(bytearray(b"x" * SIZE)), b"tail"])


@pytest.mark.parametrize(("at_caller", "at_replica"), [BOTH, *ONE_SIDED])
def test_places_go_both_ways_if_both_sides_have_memory(at_caller: bool, at_replica: bool) -> None:
    memory = TableMemory()
    caller, replica = new_caller(), new_replica()
    if at_caller:
        caller.share(memory)
    if at_replica:
        replica.share(memory)
    shake_hands(caller, replica)
    expected = joined(payload())

    caller.request("call", fields(payload()))
    (request,) = [r for a in drain_into(caller.outbox, replica.receive) for r in a.requests]
    assert joined(request.payload) == expected

    replica.reply(request.id, Reply.RESULT, payload())
    (event,) = [e for r in drain_into(replica.outbox, caller.receive) for e in r.events]
    assert joined(event.payload) == expected
    assert len(memory.lent) == (2 if at_caller and at_replica else 0)


def test_a_place_counts_with_its_size_where_a_payload_is_limited() -> None:
    memory = TableMemory()
    caller, replica = new_caller(), new_replica(max_message_bytes=SIZE)
    caller.share(memory)
    replica.share(memory)
    shake_hands(caller, replica)
    caller.request("call", fields(payload()))
    assert [r for a in drain_into(caller.outbox, replica.receive) for r in a.requests] == []
    (event,) = [e for r in drain_into(replica.outbox, caller.receive) for e in r.events]
    assert event.error is not None
    assert (event.error.size, event.error.limit) == (SIZE + 8, SIZE)


def test_a_message_with_a_place_is_small() -> None:
    caller, replica = new_caller(), new_replica()
    caller.share(memory := TableMemory())
    replica.share(memory)
    shake_hands(caller, replica)
    caller.request("call", fields(payload()))
    assert len(caller.outbox.take()) < 200
    assert not caller.outbox
