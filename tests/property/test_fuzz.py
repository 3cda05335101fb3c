"""Bytes of anybody: whatever arrives in whatever state, only the documented errors leave."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.protocol.caller import CallerSession, CallEventKind, HandshakeRefused
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.protocol.wire import MAX_UNFINISHED_PAYLOADS, WireError
from tests.property.batches import caller_batches, damaged, replica_batches
from tests.unit.sessions import STREAM, fields, new_caller, new_replica, shake_hands

pytestmark = pytest.mark.usefixtures("tiny_messages")

LIMIT = 60
INPUT = InputPlace(0, "")
every_state = pytest.mark.parametrize("state", list(SessionState), ids=lambda state: state.value)


def pair_in(state: SessionState) -> tuple[CallerSession[Any], ReplicaSession]:
    """Both machines in `state`, with a few calls on their way if they can have any."""
    caller = new_caller(max_message_bytes=LIMIT)
    replica = new_replica(max_message_bytes=LIMIT, input_credit=(2, 40))
    if state is SessionState.PROOF:
        replica.receive(caller.outbox.take())
        caller.receive(replica.outbox.take())
    elif state is not SessionState.HELLO:
        shake_hands(caller, replica)
        for number in range(4):
            caller.request(number, fields(b"x" * (15 * number), STREAM, inputs=(INPUT,) * number))
        caller.inputs.add(4, 1, InputKind.ITEM, b"z" * 30)
        replica.receive(caller.outbox.take())
        replica.reply(1, Reply.ITEM, b"y" * 30)
    if state is SessionState.DRAINING:
        replica.drain()
        while caller.state is SessionState.OPEN:
            caller.receive(replica.outbox.take())
    elif state is SessionState.CLOSED:
        caller.close()
        replica.close()
    return caller, replica


def bytes_like(batches: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Well-formed batches that make no sense, the same with damage, and noise."""
    whole = batches.map(lambda batch: batch.SerializeToString())
    return whole | whole.flatmap(damaged) | st.binary(max_size=60)


def empty(machine: CallerSession[Any] | ReplicaSession) -> None:
    """Write everything, as the owner would."""
    while machine.outbox:
        assert machine.outbox.take()
    assert machine.outbox.queued_bytes == 0
    assert 0 <= machine._assembler.total_bytes <= LIMIT * MAX_UNFINISHED_PAYLOADS


@every_state
@settings(max_examples=150)
@given(messages=st.lists(bytes_like(caller_batches), max_size=4))
def test_a_replica_meets_any_bytes_with_a_wire_error_at_most(
    state: SessionState, messages: list[bytes]
) -> None:
    _, replica = pair_in(state)
    assert replica.state is state
    try:
        for message in messages:
            arrival = replica.receive(message)
            if state in (SessionState.HELLO, SessionState.PROOF):
                assert arrival.requests == []  # nothing is handed over without a proof
            if arrival.refused:
                break
            for inbound in arrival.requests:
                assert len(inbound.payload) <= LIMIT
    except WireError:
        pass
    empty(replica)
    is_over = replica.state is SessionState.CLOSED
    ongoing = sorted(replica.ongoing_ids)
    left = replica.close()
    assert len(set(left)) == len(left)
    if is_over:  # what the peer broke says nothing more, and knows which calls it had
        assert ongoing == []
        for call_id in left:
            replica.reply(call_id, Reply.RESULT, b"late")
        assert not replica.outbox
    else:
        assert sorted(left) == ongoing
    assert replica.close() == []


@every_state
@settings(max_examples=150)
@given(messages=st.lists(bytes_like(replica_batches), max_size=4))
def test_a_caller_meets_any_bytes_with_a_wire_error_or_a_refusal_at_most(
    state: SessionState, messages: list[bytes]
) -> None:
    caller, _ = pair_in(state)
    assert caller.state is state
    calls = list(caller.calls.values())
    ended: list[object] = []
    try:
        for message in messages:
            received = caller.receive(message)
            ended += received.rejected + received.undelivered
            ended += [e.call for e in received.events if e.kind != CallEventKind.ITEM]
    except (WireError, HandshakeRefused):
        pass
    empty(caller)
    lost = [call for call, _ in caller.close()]
    # What was heard before an error may have ended some; nothing ends twice or from nowhere.
    assert len(set(ended + lost)) == len(ended + lost)
    assert set(ended + lost) <= set(calls)
