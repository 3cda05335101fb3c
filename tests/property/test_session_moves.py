"""Any messages and any calls, in any order: a session only makes the moves of its table.

The machines are driven by what owners and peers may do at all, sensible or not: each other's true
messages, messages of no sense, damage, and every public method in every state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import Error, Refusal, Reply
from serve_grpc.protocol import session_state
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.handshake import HandshakeRefused
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.protocol.session_state import SESSION_MOVES, SessionLife, SessionState
from serve_grpc.protocol.wire import WireError
from serve_grpc.states import IllegalMoveError
from tests.property.batches import caller_batches, replica_batches
from tests.property.test_fuzz import bytes_like
from tests.unit.sessions import STREAM, fields, new_caller, new_replica

pytestmark = pytest.mark.usefixtures("tiny_messages")

ANSWERS = (WireError, HandshakeRefused, IllegalMoveError)
"""What a machine may raise: the peer is at fault, or its owner."""


def checked(machine: SessionLife) -> Callable[[SessionState, str], None]:
    """The machine's own `move`, and a look at whether the table has it.

    A look of its own: an illegal move raises what an owner's illegal call raises as well.
    """
    move = machine.move

    def look_and_move(after: SessionState, why: str = "") -> None:
        before = machine.state
        assert after is before or after in SESSION_MOVES[before], f"{before} to {after}"
        move(after, why)
        assert machine.state is after

    return look_and_move


class Pair:
    """Both machines from their first message on; each move they make is looked up."""

    def __init__(self) -> None:
        self.caller, self.replica = (
            new_caller(max_message_bytes=60),
            new_replica(input_credit=(2, 20)),
        )
        for machine in (self.caller, self.replica):
            machine.move = checked(machine)  # type: ignore[method-assign]

    def do(self, step: Callable[[], object]) -> None:
        """One step, after which closed machines have queued nothing and a raise changed nothing."""
        machines: tuple[Any, ...] = (self.caller, self.replica)
        before = [(m.state, m.outbox.queued_bytes) for m in machines]
        illegal = False
        try:
            step()
        except IllegalMoveError:
            illegal = True
        except ANSWERS:
            pass
        for machine, (state, queued) in zip(machines, before, strict=True):
            if illegal:
                assert (machine.state, machine.outbox.queued_bytes) == (state, queued)
            if state is SessionState.CLOSED:
                assert machine.state is state
                assert machine.outbox.queued_bytes <= queued

    def steps(self, number: int, data: bytes) -> Callable[[], object]:
        """A step by its number."""
        caller, replica = self.caller, self.replica
        whole = (
            lambda: replica.receive(caller.outbox.take()),
            lambda: caller.receive(replica.outbox.take()),
        )
        choices: tuple[Callable[[], object], ...] = (
            *whole * 5,
            lambda: caller.request(
                "call", fields(data, envelope=STREAM, inputs=(InputPlace(0, ""),))
            ),
            lambda: caller.cancel(1),
            lambda: caller.forget("call"),
            lambda: caller.grant(1, 1, 1),
            lambda: caller.ping(3),
            lambda: caller.inputs.add(1, 0, InputKind.ITEM, data),
            lambda: replica.grant_input(1, 0, 1, 1),
            lambda: replica.reply(1, Reply.ITEM, data),
            lambda: replica.reply(1, Reply.END),
            lambda: replica.fail(2, Error(message="failed")),
            lambda: replica.reject(3),
            replica.slot_free,
            replica.drain,
            replica.hear_hello_again,
            lambda: replica.receive(data),
            lambda: caller.receive(data),
            lambda: replica.refuse(Refusal.PROTOCOL, "the owner's reasons"),
            caller.close,
            replica.close,
        )
        return choices[number % len(choices)]


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.integers(0, 28), bytes_like(caller_batches) | bytes_like(replica_batches)),
        max_size=40,
    )
)
def test_any_messages_and_calls_make_only_moves_of_the_table(
    steps: list[tuple[int, bytes]],
) -> None:
    pair = Pair()
    for number, data in steps:
        pair.do(pair.steps(number, data))


def test_the_table_has_every_state_and_closed_is_final() -> None:
    assert set(SESSION_MOVES) == set(SessionState)
    assert SESSION_MOVES[SessionState.CLOSED] == frozenset()
    for state in SessionState:
        reached = {state}
        while more := {after for at in reached for after in SESSION_MOVES[at]} - reached:
            reached |= more
        assert SessionState.CLOSED in reached


def test_in_production_a_closed_session_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(session_state, "check_move", lambda *_: told.append("illegal"))
    life = SessionLife("caller", "replica-1", 1)
    life.move(SessionState.CLOSED)
    life.move(SessionState.OPEN)
    assert (life.state, len(told)) == (SessionState.CLOSED, 2)
