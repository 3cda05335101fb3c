"""Refs that replies name, in the two session machines: held from when the reply is sure to leave,
told to the caller by number, whatever becomes of the call meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error, ReplicaBatch, Reply
from serve_grpc.payload import Segments, joined, refs_of, with_refs
from serve_grpc.protocol import wire
from serve_grpc.protocol.caller import CallEventKind
from tests.unit.sessions import STREAM, drain_into, fields, new_caller, new_replica, open_pair

REFS = ("a ref", "another one")
SMALL = with_refs(b"small", REFS)
LARGE = with_refs(b"x" * (wire.INLINE_BYTES + 1), REFS)


def asked(caller: Any, replica: Any, **changes: Any) -> int:
    call_id: int = caller.request("call", fields(**changes))
    replica.receive(caller.outbox.take())
    return call_id


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
def test_result_s_refs_are_held_and_told(payload: Segments) -> None:
    caller, replica = open_pair()
    replica.reply(asked(caller, replica), Reply.RESULT, payload)
    heard = drain_into(replica.outbox, caller.receive)
    ((number, told),) = [lent for received in heard for lent in received.lent]
    (event,) = [event for received in heard for event in received.events]
    assert replica.replies.lent == {number: REFS}
    assert event.payload is told
    assert joined(event.payload) == joined(payload)


def test_each_item_has_a_number_of_its_own() -> None:
    caller, replica = open_pair()
    call_id = asked(caller, replica, envelope=STREAM)
    # The second one is small and waits behind a large one.
    for payload in (LARGE, with_refs(b"s", ("third",)), b"none"):
        replica.reply(call_id, Reply.ITEM, payload)
    heard = drain_into(replica.outbox, caller.receive)
    lent = [lent for received in heard for lent in received.lent]
    items = [event.payload for received in heard for event in received.events]
    assert [payload for _, payload in lent] == items[:2]
    assert [replica.replies.lent[number] for number, _ in lent] == [REFS, ("third",)]


@pytest.mark.parametrize("text", ["short", "long" * wire.INLINE_BYTES], ids=["small", "large"])
def test_exception_s_refs_are_held_and_told(text: str) -> None:
    caller, replica = open_pair()
    replica.fail(asked(caller, replica), Error(message=text), REFS)
    heard = drain_into(replica.outbox, caller.receive)
    ((number, payload),) = [lent for received in heard for lent in received.lent]
    (event,) = [event for received in heard for event in received.events]
    assert (event.kind, event.error.message) == (CallEventKind.ERROR, text)
    assert event.payload is payload
    assert replica.replies.lent == {number: REFS}


def test_exception_that_is_cut_short_holds_no_refs() -> None:
    caller, replica = open_pair(limit=100_000)
    replica.fail(asked(caller, replica), Error(pickled=b"x" * 200_000), REFS)
    assert not any(received.lent for received in drain_into(replica.outbox, caller.receive))
    assert replica.replies.lent == {}


def test_reply_that_crosses_a_cancel_is_told_without_a_payload() -> None:
    caller, replica = open_pair()
    call_id = asked(caller, replica)
    replica.reply(call_id, Reply.RESULT, SMALL)
    caller.cancel(call_id)
    (received,) = drain_into(replica.outbox, caller.receive)
    assert (received.events, received.lent) == ([], [(1, None)])


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
def test_reply_after_the_cancel_holds_nothing(payload: Segments) -> None:
    caller, replica = open_pair()
    call_id = asked(caller, replica)
    caller.cancel(call_id)
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.RESULT, payload)
    replica.fail(call_id, Error(), REFS)
    assert (replica.replies.lent, bool(replica.outbox)) == ({}, False)


def test_large_item_that_a_cancel_stops_on_its_way_holds_nothing() -> None:
    caller, replica = open_pair()
    call_id = asked(caller, replica, envelope=STREAM)
    replica.reply(call_id, Reply.ITEM, with_refs(b"x" * (3 * wire.FRAGMENT_BYTES), REFS))
    caller.receive(replica.outbox.take())
    caller.cancel(call_id)
    replica.receive(caller.outbox.take())
    assert drain_into(replica.outbox, caller.receive) == []
    assert replica.replies.lent == {}


def test_large_result_that_crosses_a_cancel_is_told_in_the_end() -> None:
    caller, replica = open_pair()
    call_id = asked(caller, replica)
    replica.reply(call_id, Reply.RESULT, with_refs(b"x" * (3 * wire.FRAGMENT_BYTES), REFS))
    caller.receive(replica.outbox.take())
    assert replica.replies.lent == {}
    caller.cancel(call_id)
    replica.receive(caller.outbox.take())
    heard = drain_into(replica.outbox, caller.receive)
    assert [lent for received in heard for lent in received.lent] == [(1, None)]
    assert replica.replies.lent == {1: REFS}


def test_reply_after_the_end_of_the_session_holds_nothing() -> None:
    caller, replica = open_pair()
    call_id = asked(caller, replica)
    replica.close()
    replica.reply(call_id, Reply.RESULT, SMALL)
    assert replica.replies.lent == {}


def test_reply_over_the_caller_s_limit_is_told_without_a_payload() -> None:
    caller, replica = new_caller(max_message_bytes=1000), new_replica()
    for _ in range(2):
        replica.receive(caller.outbox.take())
        caller.receive(replica.outbox.take())
    replica.reply(asked(caller, replica), Reply.RESULT, LARGE)
    heard = drain_into(replica.outbox, caller.receive)
    assert [lent for received in heard for lent in received.lent] == [(1, None)]
    assert [e.kind for received in heard for e in received.events] == [CallEventKind.TOO_LARGE]


def test_caller_that_knows_nothing_of_it_is_not_told() -> None:
    caller, replica = new_caller(), new_replica()
    caller.outbox.batch.hello.ClearField("features")
    for _ in range(2):
        replica.receive(caller.outbox.take())
        caller.receive(replica.outbox.take())
    assert not replica.replies.caller_borrows
    replica.reply(asked(caller, replica), Reply.RESULT, SMALL)
    (reply,) = ReplicaBatch.FromString(replica.outbox.take()).replies
    assert reply.lent == 0
    assert replica.replies.lent == {1: REFS}


def test_payload_without_refs_has_none() -> None:
    assert (refs_of(b"bytes"), refs_of(Segments((b"pieces",)))) == ((), ())
