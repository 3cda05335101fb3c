"""The caller's machine: numbering, what ends a call, and what may have started when it closes."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Error,
    ReplicaBatch,
    Reply,
    RequestContext,
)
from serve_grpc.payload import joined
from serve_grpc.protocol import replica as replica_module
from serve_grpc.protocol import wire
from serve_grpc.protocol.caller import CallEvent, CallEventKind, Received
from serve_grpc.protocol.handshake import SessionState
from tests.unit.sessions import STREAM, UNARY, drain_into, fields, open_pair

BIG = b"x" * (wire.INLINE_BYTES + 1)


def test_a_request_arrives_with_everything_it_says() -> None:
    caller, replica = open_pair()
    caller.request(
        "call",
        fields(
            b"payload",
            STREAM,
            timeout_ms=1500,
            multiplexed_model_id="model",
            session_id="session",
            credit_items=3,
            credit_bytes=4,
            client="10.0.0.1:5",
        ),
    )
    (inbound,) = replica.receive(caller.outbox.take()).requests
    template, request = inbound.template, inbound.request
    assert (inbound.payload, request.request_id, request.timeout_ms) == (
        b"payload",
        "request",
        1500,
    )
    assert (request.multiplexed_model_id, request.session_id) == ("model", "session")
    assert (request.credit_items, request.credit_bytes, request.client) == (3, 4, "10.0.0.1:5")
    assert (template.method, template.stream, template.route) == ("generate", True, "/route")
    assert (template.request_serializer, template.response_serializer) == ("pickle", "msgpack")
    assert template.app_name == "app"


def test_an_envelope_is_sent_once() -> None:
    caller, _ = open_pair()
    for _ in range(3):
        caller.request("call", fields(envelope=UNARY))
        caller.request("call", fields(envelope=STREAM))
    batch = CallerBatch.FromString(caller.outbox.take())
    assert len(batch.templates) == 2
    assert len(batch.requests) == 6


def test_a_large_request_before_a_small_one_reaches_the_replica_with_it() -> None:
    caller, replica = open_pair()
    for call in ("large", "small", "large again"):
        caller.request(call, fields(BIG if "large" in call else b"", request_id=call))
    arrivals = drain_into(caller.outbox, replica.receive)
    arrived = [inbound.request.request_id for a in arrivals for inbound in a.requests]
    assert sorted(arrived) == ["large", "large again", "small"]
    assert len(replica.ongoing_ids) == 3


@pytest.mark.parametrize("payload", [b"", BIG], ids=["small", "large"])
def test_a_request_carries_a_context_where_there_is_one(payload: bytes) -> None:
    caller, replica = open_pair()
    context = RequestContext(trace={"traceparent": "00"}, ray_trace={"b": "c"}, grpc_context=b"g")
    caller.request("with", fields(payload, context=context))
    caller.request("without", fields(payload))
    arrivals = drain_into(caller.outbox, replica.receive)
    first, second = (inbound.request for arrival in arrivals for inbound in arrival.requests)
    assert first.context == context
    assert not second.HasField("context")


def test_the_size_of_contexts_counts_for_the_size_of_a_message() -> None:
    caller, replica = open_pair()
    context = RequestContext(grpc_context=b"g" * wire.BATCH_BYTES)
    for number in range(3):
        caller.request(number, fields(context=context))
    assert len(drain_into(caller.outbox, replica.receive)) == 3


@pytest.mark.parametrize("payload", [b"", BIG], ids=["small", "large"])
@pytest.mark.parametrize("field", ["request_id", "multiplexed_model_id", "session_id", "client"])
def test_a_request_with_text_that_is_no_unicode_never_hinders_the_next(
    field: str, payload: bytes
) -> None:
    caller, replica = open_pair()
    try:
        caller.request("odd", fields(payload, **{field: "\ud800"}))
    except ValueError:
        assert caller.calls == {}
    caller.request("next", fields(payload))
    arrivals = drain_into(caller.outbox, replica.receive)
    arrived = [inbound.id for arrival in arrivals for inbound in arrival.requests]
    assert arrived == list(caller.calls)
    assert caller.calls[arrived[-1]] == "next"


def test_a_number_given_to_a_new_envelope_keeps_its_meaning_for_earlier_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_TEMPLATES", 2)
    caller, replica = open_pair()
    for name in ("a", "b", "a", "c", "a", "d"):
        caller.request(name, fields(envelope=UNARY._replace(method=name), request_id=name))
    arrivals = drain_into(caller.outbox, replica.receive)
    arrived = [inbound for arrival in arrivals for inbound in arrival.requests]
    assert [inbound.request.request_id for inbound in arrived] == ["a", "b", "a", "c", "a", "d"]
    assert [inbound.template.method for inbound in arrived] == ["a", "b", "a", "c", "a", "d"]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(Reply.RESULT, b"value"), (Reply.END, b""), (Reply.RESULT, b""), (Reply.RESULT, BIG)],
    ids=["result", "end", "empty", "large"],
)
def test_a_last_reply_ends_the_call_once(kind: Reply.Kind, payload: bytes) -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    replica.receive(caller.outbox.take())
    replica.reply(call_id, kind, payload)
    replica.reply(call_id, kind, b"again")
    heard = drain_into(replica.outbox, caller.receive)
    events = [event for received in heard for event in received.events]
    assert [e._replace(payload=joined(e.payload)) for e in events] == [
        CallEvent("call", kind, payload, None)
    ]
    assert caller.calls == {}


def test_items_come_in_order_however_large_they_are() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM))
    replica.receive(caller.outbox.take())
    items = [b"1", BIG, b"2", b"3", BIG * 2, BIG, b"4"]
    for item in items:
        replica.reply(call_id, Reply.ITEM, item)
    replica.reply(call_id, Reply.END)
    heard = drain_into(replica.outbox, caller.receive)
    events = [event for received in heard for event in received.events]
    assert [joined(event.payload) for event in events] == [*items, b""]
    assert [event.kind for event in events] == [CallEventKind.ITEM] * 7 + [CallEventKind.END]


def test_an_error_arrives_as_it_was_sent() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    replica.receive(caller.outbox.take())
    error = Error(code=Error.USER_EXCEPTION, message="text", traceback="trace", pid=5)
    replica.fail(call_id, error)
    (event,) = caller.receive(replica.outbox.take()).events
    assert (event.kind, event.error) == (CallEventKind.ERROR, error)
    assert caller.calls == {}


@pytest.mark.parametrize("inline_bytes", [wire.INLINE_BYTES, 10], ids=["inline", "fragments"])
def test_a_reply_over_the_callers_limit_ends_that_call_alone(
    monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    for module in (replica_module, wire):
        monkeypatch.setattr(module, "INLINE_BYTES", inline_bytes)
    caller, replica = open_pair(limit=100)
    first, second = (caller.request(name, fields()) for name in ("first", "second"))
    replica.receive(caller.outbox.take())
    replica.reply(first, Reply.RESULT, b"x" * 101)
    replica.reply(second, Reply.RESULT, b"x" * 100)
    heard = drain_into(replica.outbox, caller.receive)
    kinds = {e.call: (e.kind, joined(e.payload)) for received in heard for e in received.events}
    assert kinds["first"] == (CallEventKind.TOO_LARGE, b"101")
    assert kinds["second"] == (CallEventKind.RESULT, b"x" * 100)
    assert caller.calls == {}


@pytest.mark.parametrize("payload", [b"", BIG], ids=["small", "large"])
def test_nothing_is_heard_of_a_cancelled_call(payload: bytes) -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(payload))
    drain_into(caller.outbox, replica.receive)
    replica.reply(call_id, Reply.RESULT, BIG)
    caller.cancel(call_id)
    caller.cancel(call_id)
    caller.grant(call_id, 1, 1)
    heard = drain_into(replica.outbox, caller.receive)
    assert [received.events for received in heard if received.events] == []
    assert CallerBatch.FromString(caller.outbox.take()).cancels == [call_id]
    assert not caller.outbox


def test_a_reply_of_a_kind_it_does_not_know_never_passes_for_a_result() -> None:
    caller, _ = open_pair()
    call_id = caller.request("call", fields())
    reply = ReplicaBatch(replies=[Reply(id=call_id, kind=44, payload=b"?")])
    try:
        received = caller.receive(reply.SerializeToString())
    except wire.WireError:
        return
    assert [e.kind for e in received.events if e.kind not in list(CallEventKind)] == []


def test_what_came_before_a_broken_frame_is_told() -> None:
    caller, _ = open_pair()
    first, second = (caller.request(name, fields()) for name in ("first", "second"))
    replies = [Reply(id=first, payload=b"result"), Reply(id=second, kind=44)]
    received: Received[str] = Received()
    with pytest.raises(wire.WireError):
        caller.receive(ReplicaBatch(replies=replies).SerializeToString(), received)
    assert [(event.call, event.payload) for event in received.events] == [("first", b"result")]
    assert [call for call, _ in caller.close()] == ["second"]


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_a_drain_gives_back_exactly_the_calls_beyond_its_last_id(accepted: int) -> None:
    caller, replica = open_pair()
    for name in "abc"[:accepted]:
        caller.request(name, fields(request_id=name))
    if accepted:
        replica.receive(caller.outbox.take())
    for name in "abc"[accepted:]:
        caller.request(name, fields(request_id=name))
    replica.drain()
    received = caller.receive(replica.outbox.take())
    assert received.draining
    assert received.undelivered == list("abc"[accepted:])
    assert list(caller.calls.values()) == list("abc"[:accepted])
    assert caller.state is SessionState.DRAINING


def test_a_large_call_that_is_still_leaving_is_given_back_by_a_drain() -> None:
    caller, replica = open_pair()
    caller.request("large", fields(b"x" * (2 * wire.FRAGMENT_BYTES)))
    caller.request("small", fields())
    replica.receive(caller.outbox.take())
    replica.drain()
    received = caller.receive(replica.outbox.take())
    assert received.undelivered == ["large"]
    assert list(caller.calls.values()) == ["small"]
    late = drain_into(caller.outbox, replica.receive)
    assert [arrival.requests for arrival in late if arrival.requests] == []


def test_only_what_left_the_outbox_may_have_started_when_the_session_ends() -> None:
    caller, _ = open_pair()
    caller.request("written", fields())
    caller.request("half written", fields(b"x" * (2 * wire.FRAGMENT_BYTES)))
    caller.outbox.take()
    caller.request("queued", fields())
    assert sorted(caller.close()) == [
        ("half written", False),
        ("queued", False),
        ("written", True),
    ]
    assert caller.calls == {}
    assert caller.close() == []


def test_load_room_and_heartbeat_are_told() -> None:
    caller, replica = open_pair()
    caller.ping(41)
    replica.receive(caller.outbox.take())
    replica.slot_free()
    replica.stamp(0, 7)
    message = replica.outbox.take()
    assert ReplicaBatch.FromString(message).pong == 41
    received = caller.receive(message)
    assert received.slot_free
    assert (received.load, received.standby) == (0, 7)


def test_requests_that_cross_a_report_are_part_of_the_load() -> None:
    caller, replica = open_pair()
    caller.request("first", fields())
    replica.receive(caller.outbox.take())
    caller.request("written", fields())
    caller.outbox.take()  # on its way
    caller.request("queued", fields())
    replica.stamp(1)
    replica.slot_free()
    assert caller.receive(replica.outbox.take()).load == 3


def test_each_message_of_a_backlog_carries_the_load_as_it_leaves() -> None:
    caller, replica = open_pair()
    ids = [caller.request("call", fields()) for _ in range(4)]
    replica.receive(caller.outbox.take())
    for call_id in ids[:2]:
        replica.reply(call_id, Reply.RESULT, b"x")
        replica.outbox.close_batch()
    replica.reply(ids[2], Reply.RESULT, b"x")  # on the open batch
    seen = []
    for load, standby in ((4, 9), (2, 3), (1, 0)):
        replica.stamp(load, standby)
        received = caller.receive(replica.outbox.take())
        seen.append((received.load, received.standby))
    assert seen == [(4, 9), (2, 3), (1, 0)]


def test_the_load_on_a_backlog_counts_no_request_twice() -> None:
    caller, replica = open_pair()
    first = caller.request("first", fields())
    replica.receive(caller.outbox.take())
    replica.reply(first, Reply.RESULT, b"x")
    replica.outbox.close_batch()
    replica.slot_free()
    caller.request("second", fields())
    replica.receive(caller.outbox.take())
    replica.stamp(1)
    assert caller.receive(replica.outbox.take()).load == 1


def test_a_piece_of_a_payload_carries_the_load_too() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.RESULT, b"x" * (2 * wire.FRAGMENT_BYTES))
    loads = []
    for load in (5, 6):
        replica.stamp(load)
        loads.append(caller.receive(replica.outbox.take()).load)
    assert loads == [5, 6]
    assert not replica.outbox


def test_a_session_shows_its_state() -> None:
    caller, replica = open_pair()
    caller.request("call", fields())
    assert "open, 1 calls" in repr(caller)
    replica.receive(caller.outbox.take())
    assert "open, 1 calls" in repr(replica)
