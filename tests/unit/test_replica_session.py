"""The replica's machine: what it hands over, what it refuses, and that only one call suffers."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Error,
    ReplicaBatch,
    Reply,
    Request,
    Template,
)
from serve_grpc.carriers.grpc.credentials import SESSION_MESSAGE_BYTES
from serve_grpc.payload import joined
from serve_grpc.protocol import replica as replica_module
from serve_grpc.protocol import wire
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.wire import WireError
from tests.unit.sessions import STREAM, drain_into, fields, open_pair


def test_rejected_calls_go_back_and_did_not_start() -> None:
    caller, replica = open_pair()
    first, second = (caller.request(name, fields()) for name in ("first", "second"))
    replica.receive(caller.outbox.take())
    replica.reject(first)
    replica.reject(first)
    received = caller.receive(replica.outbox.take())
    assert (received.rejected, received.events) == (["first"], [])
    assert replica.ongoing_ids == {second}


def test_what_was_read_is_acknowledged_without_a_message_of_its_own() -> None:
    caller, replica = open_pair()
    for _ in range(3):
        caller.request("call", fields())
    replica.receive(caller.outbox.take())
    assert not replica.outbox
    replica.slot_free()
    caller.receive(replica.outbox.take())
    assert caller.requests_read == 3


def test_a_cancel_ends_the_call_and_drops_its_replies() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM))
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.ITEM, b"x" * (wire.INLINE_BYTES + 1))
    caller.cancel(call_id)
    assert replica.receive(caller.outbox.take()).cancelled == [call_id]
    replica.reply(call_id, Reply.RESULT, b"late")
    replica.fail(call_id, Error())
    replica.reject(call_id)
    assert not replica.outbox
    assert not replica.ongoing_ids


def test_a_cancel_in_the_message_of_its_request_comes_after_it() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    caller.cancel(call_id)
    arrival = replica.receive(caller.outbox.take())
    assert [inbound.id for inbound in arrival.requests] == [call_id]
    assert arrival.cancelled == [call_id]


def test_credit_is_handed_over() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM))
    caller.grant(call_id, 2, 300)
    caller.grant(call_id, 1, 50)
    arrival = replica.receive(caller.outbox.take())
    assert arrival.credits == [(call_id, 2, 300), (call_id, 1, 50)]


def test_a_request_of_exactly_the_limit_passes_and_one_byte_more_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (replica_module, wire):
        monkeypatch.setattr(module, "INLINE_BYTES", 10)
    caller, replica = open_pair(limit=100)
    for name, size in [("fits", 100), ("over", 101), ("small", 1)]:
        caller.request(name, fields(b"x" * size, request_id=name))
    arrivals = drain_into(caller.outbox, replica.receive)
    arrived = [inbound.request.request_id for a in arrivals for inbound in a.requests]
    assert sorted(arrived) == ["fits", "small"]
    (event,) = caller.receive(replica.outbox.take()).events
    assert (event.call, event.kind) == ("over", CallEventKind.ERROR)
    assert event.error is not None
    assert (event.error.code, event.error.direction) == (Error.MESSAGE_TOO_LARGE, "request")
    assert (event.error.size, event.error.limit) == (101, 100)
    assert not event.error.may_have_executed


def test_a_request_with_an_unknown_template_fails_alone() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    batch = CallerBatch.FromString(caller.outbox.take())
    batch.requests[0].template = 99
    assert replica.receive(batch.SerializeToString()).requests == []
    (event,) = caller.receive(replica.outbox.take()).events
    assert event.error is not None
    assert event.error.code == Error.INVALID_REQUEST
    assert call_id not in replica.ongoing_ids


@pytest.mark.parametrize("ids", [[0], [1, 1], [2, 1, 2]])
def test_an_id_is_never_zero_and_never_given_to_two_calls(ids: list[int]) -> None:
    _, replica = open_pair()
    requests = [Request(id=call_id, template=1) for call_id in ids]
    batch = CallerBatch(templates=[Template(number=1)], requests=requests)
    with pytest.raises(WireError):
        replica.receive(batch.SerializeToString())


def test_replies_of_the_largest_size_all_arrive_however_many_end_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (replica_module, wire):
        monkeypatch.setattr(module, "INLINE_BYTES", 4)
    monkeypatch.setattr(wire, "FRAGMENT_BYTES", 8)
    caller, replica = open_pair(limit=64)
    count = 2 * wire.MAX_UNFINISHED_PAYLOADS
    for number in range(count):
        caller.request(number, fields())
    drain_into(caller.outbox, replica.receive)
    for call_id in sorted(replica.ongoing_ids):
        replica.reply(call_id, Reply.RESULT, bytes([call_id]) * 64)
    heard = drain_into(replica.outbox, caller.receive)
    ended = {e.call: joined(e.payload) for received in heard for e in received.events}
    assert ended == {number: bytes([number + 1]) * 64 for number in range(count)}


def test_large_replies_arrive_past_any_number_of_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (replica_module, wire):
        monkeypatch.setattr(module, "INLINE_BYTES", 4)
    monkeypatch.setattr(wire, "FRAGMENT_BYTES", 8)
    monkeypatch.setattr(wire, "BATCH_BYTES", 1)  # a message for each small frame
    caller, replica = open_pair(limit=64)
    for number in range(150):
        caller.request(number, fields(envelope=STREAM))
    drain_into(caller.outbox, replica.receive)
    ids = sorted(replica.ongoing_ids)
    for call_id in ids[50:]:
        replica.reply(call_id, Reply.ITEM, bytes([call_id]) * 64)
    for call_id in ids[:50] * 10:
        replica.reply(call_id, Reply.ITEM, b"tiny")
    heard = drain_into(replica.outbox, caller.receive)
    items = [joined(event.payload) for received in heard for event in received.events]
    assert sorted(items) == sorted([b"tiny"] * 500 + [bytes([i]) * 64 for i in ids[50:]])


@pytest.mark.parametrize("field", ["message", "traceback", "pickled"])
def test_an_error_of_any_size_leaves_in_messages_the_transport_takes(field: str) -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    replica.receive(caller.outbox.take())
    value = b"x" * (2 * SESSION_MESSAGE_BYTES)
    error = Error(code=Error.USER_EXCEPTION)
    setattr(error, field, value if field == "pickled" else value.decode())
    replica.fail(call_id, error)
    sizes = []
    while replica.outbox:
        message = replica.outbox.take()
        sizes.append(len(message))
        caller.receive(message)
    assert max(sizes) <= SESSION_MESSAGE_BYTES
    assert caller.calls == {}


def test_many_errors_at_once_leave_in_messages_the_transport_takes() -> None:
    caller, replica = open_pair()
    for _ in range(100):
        caller.request("call", fields())
    replica.receive(caller.outbox.take())
    for call_id in sorted(replica.ongoing_ids):
        replica.fail(call_id, Error(traceback="x" * 100_000))
    while replica.outbox:
        message = replica.outbox.take()
        assert len(message) <= SESSION_MESSAGE_BYTES
        caller.receive(message)
    assert caller.calls == {}


def test_after_a_drain_running_calls_end_and_new_ones_never_start() -> None:
    caller, replica = open_pair()
    call_id = caller.request("running", fields())
    replica.receive(caller.outbox.take())
    caller.request("late", fields())
    replica.drain()
    replica.drain()
    assert replica.receive(caller.outbox.take()).requests == []
    replica.reply(call_id, Reply.RESULT, b"done")
    batch = ReplicaBatch.FromString(replica.outbox.take())
    assert batch.drain.requests_read == 1
    assert [reply.payload for reply in batch.replies] == [b"done"]


def test_closing_tells_which_calls_still_ran_and_silences_them() -> None:
    caller, replica = open_pair()
    ids = [caller.request("call", fields()) for _ in range(3)]
    replica.receive(caller.outbox.take())
    replica.reply(ids[0], Reply.RESULT)
    replica.outbox.take()
    assert sorted(replica.close()) == ids[1:]
    replica.reply(ids[1], Reply.RESULT)
    assert not replica.outbox
    assert replica.close() == []
    assert replica.state is SessionState.CLOSED
