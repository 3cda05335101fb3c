"""The states of a session: what each of them allows, and the lines that an operator follows."""

from __future__ import annotations

import logging

import pytest

from serve_grpc._generated.replica_pb2 import CallerBatch, Proof, Refusal, ReplicaBatch, Reply
from serve_grpc.config import LOGGER_NAME
from serve_grpc.protocol.handshake import HandshakeRefused
from serve_grpc.protocol.session_state import SessionState
from serve_grpc.protocol.wire import WireError
from serve_grpc.states import IllegalMoveError
from tests.unit.sessions import STREAM, drain_into, fields, new_caller, new_replica, open_pair


def test_a_request_before_the_session_is_open_leaves_nothing_half_done() -> None:
    caller = new_caller()
    queued = caller.outbox.queued_bytes
    with pytest.raises(IllegalMoveError, match="a request in state HELLO"):
        caller.request("call", fields())
    assert (caller.calls, caller.outbox.queued_bytes) == ({}, queued)


def test_a_draining_session_takes_no_request_and_ends_those_it_has() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM))
    replica.receive(caller.outbox.take())
    replica.drain()
    caller.receive(replica.outbox.take())
    with pytest.raises(IllegalMoveError):
        caller.request("another", fields())
    caller.grant(call_id, 1, 1)
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.END)
    (heard,) = drain_into(replica.outbox, caller.receive)
    assert [event.call for event in heard.events] == ["call"]


def test_a_closed_caller_queues_nothing_and_hears_nothing() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields(envelope=STREAM))
    replica.receive(caller.outbox.take())
    replica.reply(call_id, Reply.ITEM, b"item")
    message = replica.outbox.take()
    assert caller.close() == [("call", True)]
    with pytest.raises(IllegalMoveError):
        caller.request("another", fields())
    caller.cancel(call_id)
    caller.grant(call_id, 1, 1)
    caller.ping(1)
    assert not caller.outbox
    assert caller.receive(message).events == []
    assert caller.state is SessionState.CLOSED


def test_what_a_broken_replica_left_behind_is_told_and_its_cancel_is_not_sent() -> None:
    caller, _ = open_pair()
    for name in ("first", "second"):
        caller.request(name, fields())
    caller.outbox.take()
    with pytest.raises(WireError):
        caller.receive(b"\x00")
    assert caller.state is SessionState.CLOSED
    caller.forget("first")
    assert not caller.outbox
    assert caller.close() == [("second", True)]


def test_a_broken_caller_is_refused_and_what_still_runs_answers_nobody() -> None:
    caller, replica = open_pair()
    call_id = caller.request("call", fields())
    replica.receive(caller.outbox.take())
    with pytest.raises(WireError):
        replica.receive(b"\x00")
    assert replica.state is SessionState.CLOSED
    replica.reply(call_id, Reply.RESULT, b"late")
    replica.slot_free()
    replica.drain()
    said = ReplicaBatch.FromString(replica.outbox.take())
    assert (said.refusal.reason, len(said.replies)) == (Refusal.PROTOCOL, 0)
    assert not replica.outbox
    assert replica.refuse(Refusal.DRAINING, "once more").refused
    assert replica.refusal == said.refusal
    assert (bool(replica.outbox), replica.close(), replica.close()) == (False, [call_id], [])


def test_a_look_at_a_hello_that_never_came_is_refused_to_the_owner() -> None:
    _, replica = open_pair()
    with pytest.raises(IllegalMoveError, match="a second look at the hello in state OPEN"):
        replica.hear_hello_again()


def test_a_session_can_be_followed_by_its_name_on_both_sides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)
    caller, replica = open_pair()
    replica.drain()
    drain_into(replica.outbox, caller.receive)
    caller.close()
    replica.close()
    replica.close()
    side = "session replica-1/7"
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("replica's")] == [
        f"replica's {side}: hello to proof",
        f"replica's {side}: proof to open",
        f"replica's {side}: open to draining",
        f"replica's {side}: draining to closed",
    ]
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("caller's")] == [
        f"caller's {side}: hello to proof",
        f"caller's {side}: proof to open",
        f"caller's {side}: open to draining",
        f"caller's {side}: draining to closed",
    ]


def test_a_refusal_is_logged_with_its_reason_on_both_sides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)
    caller, replica = new_caller(), new_replica()
    replica.receive(caller.outbox.take())
    caller.receive(replica.outbox.take())
    assert replica.receive(CallerBatch(proof=Proof(mac=b"no")).SerializeToString()).refused
    with pytest.raises(HandshakeRefused):
        caller.receive(replica.outbox.take())
    why = "proof to closed (UNAUTHENTICATED: the proof is wrong)"
    assert [r.getMessage() for r in caplog.records][-2:] == [
        f"replica's session replica-1/7: {why}",
        f"caller's session replica-1/7: {why}",
    ]


def test_nothing_is_logged_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)
    open_pair()
    assert caplog.records == []
