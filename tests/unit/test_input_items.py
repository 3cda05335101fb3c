"""Streams that are arguments, on the session: agreement, order, credit, and who lies."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import CallerBatch, Error, InputItem, ReplicaBatch, Reply
from serve_grpc.payload import joined
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InboundItem, InputKind, InputNews
from serve_grpc.protocol.wire import (
    MAX_INPUT_CREDIT_BYTES,
    MAX_INPUT_CREDIT_ITEMS,
    MAX_INPUTS,
    WireError,
)
from tests.unit.sessions import UNARY, drain_into, fields, open_pair

CREDIT = 4, 100_000
PLACES = InputPlace(0, ""), InputPlace(0, "audio")
LARGE = b"x" * 40_000  # over what fits a frame


@pytest.fixture
def pair():
    """A caller and a replica; a call with two inputs runs, and is number 1."""
    caller, replica = open_pair(input_credit=CREDIT)
    caller.request("call", fields(b"arguments", inputs=PLACES))
    (arrival,) = drain_into(caller.outbox, replica.receive)
    (inbound,) = arrival.requests
    assert [(place.position, place.name) for place in inbound.request.inputs] == list(PLACES)
    return caller, replica


def heard(caller, replica):
    """What the replica hears of inputs."""
    return [
        item for arrival in drain_into(caller.outbox, replica.receive) for item in arrival.inputs
    ]


def told(caller, replica):
    """What the caller hears of inputs."""
    received = drain_into(replica.outbox, caller.receive)
    return [news for message in received for news in message.inputs]


def test_a_replica_that_takes_inputs_says_so_and_how_much():
    assert open_pair(input_credit=CREDIT)[0].inputs.credit == CREDIT
    assert open_pair()[0].inputs.credit is None  # as one of an earlier version


def test_what_an_input_says_arrives_in_order(pair):
    caller, replica = pair
    caller.inputs.add(1, 0, InputKind.ITEM, b"first")
    caller.inputs.add(1, 1, InputKind.ITEM, b"of the other")
    caller.inputs.add(1, 0, InputKind.ITEM, LARGE)
    caller.inputs.add(1, 0, InputKind.ITEM, b"third")
    caller.inputs.add(1, 0, InputKind.END)
    caller.inputs.add(1, 1, InputKind.ERROR, error=Error(message="no more"))
    items = heard(caller, replica)
    assert [(i.number, i.kind, joined(i.payload)) for i in items if i.number == 0] == [
        (0, InputKind.ITEM, b"first"),
        (0, InputKind.ITEM, LARGE),
        (0, InputKind.ITEM, b"third"),
        (0, InputKind.END, b""),
    ]
    other = [i for i in items if i.number == 1]
    assert other[0] == InboundItem(1, 1, InputKind.ITEM, b"of the other", None)
    assert (other[1].kind, other[1].error.message) == (InputKind.ERROR, "no more")


def test_items_follow_a_large_request():
    caller, replica = open_pair(input_credit=CREDIT)
    caller.request("call", fields(LARGE, inputs=PLACES[:1]))
    caller.inputs.add(1, 0, InputKind.ITEM, LARGE[1:])
    caller.inputs.add(1, 0, InputKind.END)
    arrivals = drain_into(caller.outbox, replica.receive)
    assert [joined(r.payload) for a in arrivals for r in a.requests] == [LARGE]
    items = [item for a in arrivals for item in a.inputs]
    assert [joined(item.payload) for item in items] == [LARGE[1:], b""]


def test_a_large_item_stays_behind_a_request_that_begins_a_new_batch(monkeypatch):
    # The envelope of a request may get a number anew, and then its frame leaves one message later
    # than the one that was open before.
    monkeypatch.setattr("serve_grpc.protocol.wire.MAX_TEMPLATES", 1)
    caller, replica = open_pair(input_credit=CREDIT)
    caller.request("other", fields(envelope=UNARY))
    caller.request("call", fields(LARGE, UNARY._replace(method="next"), inputs=PLACES[:1]))
    caller.inputs.add(1, 0, InputKind.ITEM, b"")
    caller.inputs.add(2, 0, InputKind.ITEM, LARGE[1:])
    arrivals = drain_into(caller.outbox, replica.receive)
    requests = [r for a in arrivals for r in a.requests]
    assert [joined(r.payload) for r in requests] == [b"", LARGE]
    assert [joined(i.payload) for a in arrivals for i in a.inputs] == [LARGE[1:]]


def test_a_large_error_is_whole(pair):
    caller, replica = pair
    caller.inputs.add(1, 0, InputKind.ERROR, error=Error(message="m", pickled=LARGE))
    (item,) = heard(caller, replica)
    assert (item.kind, item.error.pickled) == (InputKind.ERROR, LARGE)


def test_an_error_over_the_limit_is_told_as_text(pair):
    caller, replica = pair
    error = Error(message="m", pickled=b"x" * 2_000_000)
    caller.inputs.add(1, 0, InputKind.ERROR, error=error)
    (item,) = heard(caller, replica)
    assert (item.error.message, item.error.pickled) == ("m", b"")


def test_an_item_over_the_limit_fails_its_input_and_nothing_else():
    caller, replica = open_pair(50_000, CREDIT)
    caller.request("call", fields(inputs=PLACES))
    caller.inputs.add(1, 0, InputKind.ITEM, b"x" * 60_000)
    caller.inputs.add(1, 1, InputKind.ITEM, b"of the other")
    first, second = heard(caller, replica)
    assert (first.number, first.kind, first.error.code, first.error.size, first.error.limit) == (
        *(0, InputKind.ERROR, Error.MESSAGE_TOO_LARGE),
        *(60_000, 50_000),
    )
    assert second.payload == b"of the other"
    assert replica.ongoing_ids == {1}


def test_credit_and_the_end_of_interest_reach_the_caller(pair):
    caller, replica = pair
    for _ in range(2):
        caller.inputs.add(1, 0, InputKind.ITEM, b"x" * 25)
    heard(caller, replica)
    replica.grant_input(1, 0, 2, 50)
    replica.grant_input(1, 1, 0, 0, is_closed=True)
    assert told(caller, replica) == [
        InputNews("call", 0, 2, 50, False),
        InputNews("call", 1, 0, 0, True),
    ]


def test_granted_items_may_be_sent_and_no_more(pair):
    caller, replica = pair
    for _ in range(4):
        caller.inputs.add(1, 0, InputKind.ITEM, b"item")
    heard(caller, replica)
    replica.grant_input(1, 0, 1, 0)
    caller.inputs.add(1, 0, InputKind.ITEM, b"item")
    assert len(heard(caller, replica)) == 1
    caller.inputs.add(1, 0, InputKind.ITEM, b"item")
    with pytest.raises(WireError, match="without credit"):
        heard(caller, replica)


@pytest.mark.parametrize(
    "items",
    [
        [InputItem(id=1, number=2)],
        [InputItem(id=1, number=0, kind=InputItem.END)] * 2,
        [InputItem(id=1, number=0, kind=InputItem.ERROR), InputItem(id=1, number=0)],
        [InputItem(id=1, number=0, kind=7)],  # type: ignore[arg-type]
        [InputItem(id=1, number=0, payload=b"x" * 150_000), InputItem(id=1, number=0)],
    ],
    ids=[
        "no such input",
        "a second end",
        "after an error",
        "unknown kind",
        "bytes over the credit",
    ],
)
def test_a_caller_that_lies_about_inputs_breaks_the_session(pair, items):
    _, replica = pair
    with pytest.raises(WireError):
        replica.receive(CallerBatch(input_items=items).SerializeToString())
    assert replica.refusal is not None


def test_inputs_that_were_not_agreed_on_break_the_session():
    _, replica = open_pair()
    batch = CallerBatch(
        templates=[{"number": 1, "has_inputs": True}],
        requests=[{"id": 1, "template": 1, "inputs": [{}]}],
    )
    with pytest.raises(WireError, match="not agreed on"):
        replica.receive(batch.SerializeToString())


def test_too_many_inputs_break_the_session():
    caller, replica = open_pair(input_credit=CREDIT)
    caller.request("call", fields(inputs=PLACES[:1] * (MAX_INPUTS + 1)))
    with pytest.raises(WireError, match="inputs"):
        drain_into(caller.outbox, replica.receive)


def test_a_replica_that_grants_what_there_is_not_breaks_the_session(pair):
    caller, _ = pair
    with pytest.raises(WireError, match="credit for input 2"):
        caller.receive(ReplicaBatch(input_credits=[{"id": 1, "number": 2}]).SerializeToString())


@pytest.mark.parametrize("granted", [{"items": 2}, {"items": 1, "bytes": 5}])
def test_a_replica_that_grants_more_than_was_sent_breaks_the_session(pair, granted):
    caller, replica = pair
    caller.inputs.add(1, 0, InputKind.ITEM, b"item")
    heard(caller, replica)
    with pytest.raises(WireError, match="too much credit"):
        caller.receive(ReplicaBatch(input_credits=[{"id": 1, **granted}]).SerializeToString())


def test_what_is_sent_ahead_has_a_bound_of_its_own():
    caller, _ = open_pair(input_credit=(2**32 - 1, 2**32 - 1))
    assert caller.inputs.credit == (MAX_INPUT_CREDIT_ITEMS, MAX_INPUT_CREDIT_BYTES)


@pytest.mark.parametrize("end", ["answered", "failed", "rejected", "cancelled"])
def test_what_comes_after_the_end_of_a_call_is_dropped(pair, end):
    caller, replica = pair
    caller.inputs.add(1, 0, InputKind.ITEM, LARGE)
    caller.inputs.add(1, 0, InputKind.ITEM, b"small")
    if end == "cancelled":
        caller.cancel(1)
    else:
        {
            "answered": lambda: replica.reply(1, Reply.RESULT, b"done"),
            "failed": lambda: replica.fail(1, Error(message="failed")),
            "rejected": lambda: replica.reject(1),
        }[end]()
    assert heard(caller, replica) == []
    replica.grant_input(1, 0, 1, 1)
    assert told(caller, replica) == []
    caller.inputs.add(1, 0, InputKind.ITEM, b"late")
    assert not caller.outbox
    assert replica._assembler.total_bytes == 0


def test_what_has_left_of_an_item_is_dropped_when_its_call_ends(pair):
    caller, replica = pair
    caller.inputs.add(1, 0, InputKind.ITEM, b"x" * 1_500_000)
    replica.receive(caller.outbox.take())  # the first part of it
    assert replica._assembler.total_bytes > 0
    replica.reply(1, Reply.RESULT, b"done")
    drain_into(replica.outbox, caller.receive)
    drain_into(caller.outbox, replica.receive)
    assert replica._assembler.total_bytes == 0
    assert not replica._assembler._sizes


def test_inputs_of_running_calls_go_on_while_the_replica_drains(pair):
    caller, replica = pair
    replica.drain()
    drain_into(replica.outbox, caller.receive)
    caller.inputs.add(1, 0, InputKind.ITEM, LARGE)
    caller.inputs.add(1, 0, InputKind.END)
    assert [joined(item.payload) for item in heard(caller, replica)] == [LARGE, b""]
    replica.grant_input(1, 1, 0, 0, is_closed=True)
    assert len(told(caller, replica)) == 1


def test_a_session_that_is_closed_sends_nothing_of_inputs(pair):
    caller, replica = pair
    caller.close()
    caller.inputs.add(1, 0, InputKind.ITEM, b"late")
    replica.close()
    replica.grant_input(1, 0, 1, 1)
    assert not caller.outbox
    assert not replica.outbox


def test_a_name_that_is_no_text_is_refused_before_anything_is_queued():
    caller, _ = open_pair(input_credit=CREDIT)
    with pytest.raises(ValueError, match="surrogates"):
        caller.request("call", fields(inputs=(InputPlace(0, "\ud800"),)))
    assert not caller.calls
    assert not caller.outbox
