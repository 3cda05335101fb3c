"""The two session machines against each other, under any interleaving, with any end.

`Network` checks each step; here it is only driven: by Hypothesis, which finds short examples,
and by long random lives, which reach what short ones do not.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.protocol.input_items import InputKind
from tests.property.session_network import LIMIT, Network, Sent

pytestmark = pytest.mark.usefixtures("tiny_messages")

# Around what travels inside a frame, what fits one fragment, and the limit.
SIZES = st.sampled_from([0, 5, 9, 10, 11, 17, 18, 30, 60, LIMIT - 3, LIMIT, LIMIT + 30])
ANY = st.integers(0, 1000)
SAYS = [InputKind.ITEM] * 5 + [InputKind.END, InputKind.ERROR]


class SessionsMachine(RuleBasedStateMachine):
    """Anything that a caller, a replica or the network may do next."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def an_open_call(self, index: int) -> Sent:
        return self.network.open_calls[index % len(self.network.open_calls)]

    def a_running_id(self, index: int) -> int:
        return list(self.network.running)[index % len(self.network.running)]

    @precondition(lambda self: self.network.may_request)
    @rule(method=st.integers(0, 5), size=SIZES, is_stream=st.booleans(), inputs=st.integers(0, 2))
    def request(self, method: int, size: int, is_stream: bool, inputs: int) -> None:
        self.network.request(method, size, is_stream=is_stream, inputs=inputs)

    @precondition(lambda self: self.network.speaking)
    @rule(index=ANY, kind=st.sampled_from(SAYS), size=SIZES)
    def say(self, index: int, kind: InputKind, size: int) -> None:
        speaking = self.network.speaking
        self.network.say(*speaking[index % len(speaking)], kind, size)

    @precondition(lambda self: self.network.listening)
    @rule(index=ANY, items=st.integers(0, 9), bytes_=st.integers(0, 99), is_closed=st.booleans())
    def grant_input(self, index: int, items: int, bytes_: int, is_closed: bool) -> None:
        listening = self.network.listening
        self.network.grant_input(*listening[index % len(listening)], items, bytes_, is_closed)

    @precondition(lambda self: self.network.open_calls)
    @rule(index=ANY)
    def cancel(self, index: int) -> None:
        self.network.cancel(self.an_open_call(index))

    @precondition(lambda self: self.network.consuming_calls)
    @rule(index=ANY, items=st.integers(0, 9), bytes_=st.integers(0, 99))
    def grant(self, index: int, items: int, bytes_: int) -> None:
        calls = self.network.consuming_calls
        self.network.grant(calls[index % len(calls)], items, bytes_)

    @precondition(lambda self: self.network.running)
    @rule(index=ANY, size=SIZES)
    def answer(self, index: int, size: int) -> None:
        call_id = self.a_running_id(index)
        is_stream = self.network.running[call_id].is_stream
        self.network.answer(call_id, Reply.ITEM if is_stream else Reply.RESULT, size)

    @precondition(lambda self: any(call.is_stream for call in self.network.running.values()))
    @rule(index=ANY)
    def end_a_stream(self, index: int) -> None:
        streams = [i for i, call in self.network.running.items() if call.is_stream]
        self.network.answer(streams[index % len(streams)], Reply.END, 0)

    @precondition(lambda self: self.network.running)
    @rule(index=ANY, size=SIZES)
    def fail(self, index: int, size: int) -> None:
        self.network.fail(self.a_running_id(index), size // 2)

    @rule(by_caller=st.booleans())
    def write(self, by_caller: bool) -> None:
        self.network.write(by_caller=by_caller)

    @rule(to_caller=st.booleans())
    def deliver(self, to_caller: bool) -> None:
        self.network.deliver(to_caller=to_caller)

    @rule(to_caller=st.booleans())
    def carry(self, to_caller: bool) -> None:
        self.network.write(by_caller=not to_caller)
        self.network.deliver(to_caller=to_caller)

    @rule(is_full=st.booleans())
    def fill(self, is_full: bool) -> None:
        self.network.is_full = is_full
        if not is_full and not self.network.is_cut:
            self.network.replica.slot_free()

    @precondition(lambda self: not self.network.is_cut)
    @rule(number=st.integers(1, 9))
    def ping(self, number: int) -> None:
        self.network.caller.ping(number)

    @precondition(lambda self: not self.network.is_cut and len(self.network.calls) > 2)
    @rule()
    def drain(self) -> None:
        self.network.replica.drain()

    @precondition(lambda self: not self.network.is_cut and len(self.network.calls) > 4)
    @rule()
    def cut(self) -> None:
        self.network.cut()

    def teardown(self) -> None:
        self.network.quiesce()


TestSessions = SessionsMachine.TestCase
TestSessions.settings = settings(max_examples=120, stateful_step_count=40)


# How often each thing happens in a long life.
WEIGHTS = {
    "request": 20,
    "answer": 25,
    "fail": 2,
    "cancel": 2,
    "grant": 4,
    "say": 14,
    "grant_input": 8,
    "fill": 1,
    "write": 22,
    "deliver": 24,
}


def step(network: Network, rng: random.Random) -> None:
    """One random thing, if it can happen now."""
    (what,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
    size = rng.choice([0, 5, 10, 11, 30, LIMIT - 4, LIMIT + 30])
    if what == "request" and network.may_request:
        network.request(
            rng.randrange(6), size, is_stream=rng.random() < 0.5, inputs=rng.choice([0, 1, 2])
        )
    elif what == "answer" and network.running:
        call_id = rng.choice(list(network.running))
        is_stream = network.running[call_id].is_stream
        last = Reply.END if is_stream else Reply.RESULT
        network.answer(call_id, Reply.ITEM if is_stream and rng.random() < 0.8 else last, size)
    elif what == "fail" and network.running:
        network.fail(rng.choice(list(network.running)), size // 2)
    elif what == "cancel" and network.open_calls:
        network.cancel(rng.choice(network.open_calls))
    elif what == "grant" and network.consuming_calls:
        network.grant(rng.choice(network.consuming_calls), 1, size)
    elif what == "say" and network.speaking:
        network.say(*rng.choice(network.speaking), rng.choice(SAYS), size)
    elif what == "grant_input" and network.listening:
        is_closed = rng.random() < 0.1
        network.grant_input(*rng.choice(network.listening), rng.randrange(4), size, is_closed)
    elif what == "fill":
        network.is_full = not network.is_full
    elif what == "write":
        network.write(by_caller=rng.random() < 0.5)
    elif what == "deliver":
        network.deliver(to_caller=rng.random() < 0.5)


def live(rng: random.Random, steps: int) -> Network:
    """A network after `steps` random steps, a drain or a cut perhaps, and a few steps more."""
    network = Network()
    for _ in range(steps):
        step(network, rng)
    rng.choice([lambda: None, network.replica.drain, network.cut])()
    for _ in range(50):
        step(network, rng)
    network.quiesce()
    return network


def test_in_long_lives_every_call_ends_once_in_one_of_all_ways_and_nothing_is_left() -> None:
    ends: Counter[str] = Counter()
    for seed in range(20):
        network = live(random.Random(seed), steps=1000)
        ends.update(call.outcome for call in network.calls.values())
    assert set(ends) == {
        "cancelled",
        "failed",
        "lost",
        "not started",
        "rejected",
        "succeeded",
        "too large",
    }
