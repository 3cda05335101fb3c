"""Payloads over the limit: who agrees on Ray's object store, and what frames say of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import CallerBatch, Error, ReplicaBatch, Reply
from serve_grpc.payload import Segments, Stored, refs_of
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.replica.replies import PlainReplies
from tests.unit.sessions import (
    LIMIT,
    STREAM,
    UNARY,
    fields,
    new_caller,
    new_replica,
    open_pair,
    shake_hands,
)

SIZE = 3 * LIMIT
PLACE = Stored(SIZE, b"id", b"owner")
BOTH = {"takes_stored": True}


def stored(*others: Any, place: Stored = PLACE) -> Segments:
    """A payload that is in the store; its refs are words here."""
    return Segments((), ("object", *others), place)


def pair(caller: dict[str, Any] = BOTH, replica: dict[str, Any] = BOTH) -> tuple[Any, Any]:
    one, other = new_caller(**caller), new_replica(**replica)
    shake_hands(one, other)
    return one, other


# ------------------------------------------------------------ who agrees


@pytest.mark.parametrize("caller_does", [False, True])
@pytest.mark.parametrize("replica_does", [False, True])
def test_both_sides_have_to_take_it(caller_does: bool, replica_does: bool) -> None:
    caller, replica = pair({"takes_stored": caller_does}, {"takes_stored": replica_does})
    agreed = caller_does and replica_does
    assert caller.stores is agreed
    assert replica.stores_above == (LIMIT if agreed else None)


@pytest.mark.parametrize(("callers", "above"), [(LIMIT - 1, LIMIT - 1), (2 * LIMIT, LIMIT)])
def test_results_are_stored_above_the_lower_limit(callers: int, above: int) -> None:
    _, replica = pair({**BOTH, "max_message_bytes": callers})
    assert replica.stores_above == above


def test_a_caller_of_another_version_says_less() -> None:
    # It borrows nothing, so it could not fetch what a result is in.
    caller, replica = new_caller(**BOTH), new_replica(**BOTH)
    hello = CallerBatch.FromString(caller.outbox.take())
    hello.hello.features.remove("lent")
    replica.receive(hello.SerializeToString())
    caller.receive(replica.outbox.take())
    replica.receive(caller.outbox.take())
    assert replica.stores_above is None


# ------------------------------------------------------------ frames


def test_a_request_tells_where_it_is() -> None:
    caller, replica = pair()
    caller.request("call", fields(stored("another")))
    (request,) = replica.receive(caller.outbox.take()).requests
    assert (request.payload.stored, len(request.payload)) == (PLACE, SIZE)
    assert refs_of(request.payload) == ()  # what it names is the executor's business


@pytest.mark.parametrize("size", [1, SIZE])
def test_a_request_of_a_session_that_stores_none_fails_as_any_large_one(size: int) -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(stored(place=Stored(size, b"id", b"owner"))))
    arrival = replica.receive(caller.outbox.take())
    assert (arrival.requests, call_id in replica.ongoing_ids) == ([], False)
    (event,) = caller.receive(replica.outbox.take()).events
    assert (event.error.code, event.error.size) == (Error.MESSAGE_TOO_LARGE, size)
    assert (event.error.limit, event.error.direction) == (LIMIT, "request")


def test_a_result_tells_that_it_is_the_first_thing_lent() -> None:
    caller, replica = pair()
    call_id = caller.request("call", fields())
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.RESULT, stored("another"))
    received = caller.receive(replica.outbox.take())
    ((number, told),) = received.lent
    (event,) = received.events
    assert event.payload is told
    assert told.stored == Stored(SIZE)  # neither id nor owner: both come by Ray's own call
    assert replica.replies.lent == {number: ("object", "another")}
    assert caller.calls == {}


@pytest.mark.parametrize("kind", [Reply.RESULT, Reply.ITEM])
def test_a_reply_that_was_not_agreed_on_is_too_large(kind: int) -> None:
    # A replica of ours stores no item; and of a session without the feature nothing at all.
    takes = kind == Reply.ITEM
    caller, replica = pair({"takes_stored": takes}, {"takes_stored": takes})
    call_id = caller.request("call", fields(envelope=STREAM if takes else UNARY))
    replica.receive(caller.outbox.take())
    replica.reply(call_id, kind, stored())
    received = caller.receive(replica.outbox.take())
    (event,) = received.events
    assert (event.kind, event.payload) == (CallEventKind.TOO_LARGE, str(SIZE).encode())
    assert received.lent == [(1, None)]  # given back
    assert caller.calls == {}


def test_a_size_that_is_no_length_is_too_large_as_well() -> None:
    caller, replica = pair()
    size = 2**64 - 1
    request = CallerBatch()
    request.templates.add(number=1, method="predict")
    request.requests.add(id=9, template=1).stored.size = size
    assert replica.receive(request.SerializeToString()).requests == []
    (reply,) = ReplicaBatch.FromString(replica.outbox.take()).replies
    assert (reply.error.code, reply.error.size) == (Error.MESSAGE_TOO_LARGE, size)
    call_id = caller.request("call", fields())
    answer = ReplicaBatch()
    answer.replies.add(id=call_id, kind=Reply.RESULT, lent=3).stored.size = size
    received = caller.receive(answer.SerializeToString())
    assert [event.kind for event in received.events] == [CallEventKind.TOO_LARGE]
    assert received.lent == [(3, None)]


def test_a_large_item_before_a_stored_one_is_no_obstacle() -> None:
    caller, replica = pair()
    call_id = caller.request("call", fields(stored(), STREAM))
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.ITEM, b"x" * LIMIT)
    replica.reply(call_id, Reply.END)
    events = []
    while replica.outbox:
        events += caller.receive(replica.outbox.take()).events
    assert [event.kind for event in events] == [CallEventKind.ITEM, CallEventKind.END]


def test_the_plain_door_stores_nothing() -> None:
    assert PlainReplies(SimpleNamespace()).stores_above is None  # type: ignore[arg-type]
