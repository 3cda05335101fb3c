"""Both session machines, a network between them that is only two queues, and who must get what.

Messages arrive in order in each direction, whenever a test says so; `cut` ends the connection and
loses what is on its way. Every payload says which call it belongs to, so each step checks itself:
a call ends once, hears only what was said to it, in order, and what is reported as not started
never started.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import CallEvent, CallEventKind, Envelope
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.replica import InboundRequest
from tests.property.input_network import CREDIT, InputTruth
from tests.unit.sessions import fields, open_pair

LIMIT = 100
"""Largest payload both sides take."""


@dataclass
class Sent:
    """A call as its caller knows it."""

    number: int
    call_id: int
    envelope: Envelope
    payload: bytes
    outcome: str = ""
    heard: list[bytes] = field(default_factory=list)
    granted: list[tuple[int, int]] = field(default_factory=list)
    inputs: list[InputTruth] = field(default_factory=list)


@dataclass
class Running:
    """A call as the replica knows it."""

    number: int
    is_stream: bool
    credited: list[tuple[int, int]] = field(default_factory=list)


def labelled(label: str, size: int) -> bytes:
    """At least `size` bytes that nothing else is equal to."""
    return (label + ";").encode() + bytes((len(label) + i) % 256 for i in range(size))


def _next_message(outbox: Outbox[Any]) -> bytes:
    message = outbox.take()
    assert message, "it holds something and says nothing"
    return message


class Network:
    """One caller, one replica, and the truth about their calls.

    Attributes:
        calls: All calls ever made, by number.
        running: Calls that run on the replica, by session id.
        said: What the replica answered to each call, in order.
        is_full: Whether the replica turns requests away.
    """

    def __init__(self) -> None:
        self.caller, self.replica = open_pair(LIMIT, CREDIT)
        self.to_replica: deque[bytes] = deque()
        self.to_caller: deque[bytes] = deque()
        self.calls: dict[int, Sent] = {}
        self.running: dict[int, Running] = {}
        self.said: dict[int, list[bytes]] = defaultdict(list)
        self.turned_away: set[int] = set()
        self.handed_over: set[int] = set()
        self.surely_not_started: set[int] = set()
        self.is_full = False
        self.is_cut = False

    # ------------------------------------------------------------ the caller

    @property
    def open_calls(self) -> list[Sent]:
        """Calls that have not ended for their caller."""
        return [call for call in self.calls.values() if not call.outcome]

    @property
    def consuming_calls(self) -> list[Sent]:
        """Those of which an item has arrived, so that there is something to give back."""
        return [call for call in self.open_calls if call.heard]

    @property
    def may_request(self) -> bool:
        """Whether the caller would send new calls here."""
        return not self.is_cut and self.caller.state is SessionState.OPEN

    def request(self, method: int, size: int, *, is_stream: bool, inputs: int = 0) -> None:
        """The caller makes a call."""
        number = len(self.calls)
        envelope = Envelope(f"method{method}", "pickle", "pickle", is_stream, "", "")
        payload = labelled(f"{number}", size)
        places = tuple(InputPlace(i, f"name{i}" if i else "") for i in range(inputs))
        said = fields(
            payload, envelope, request_id=str(number), timeout_ms=number + 1, inputs=places
        )
        sent = Sent(number, self.caller.request(number, said), envelope, payload)
        sent.inputs = [InputTruth(i, f"{number}.{i}", LIMIT) for i in range(inputs)]
        self.calls[number] = sent

    def cancel(self, call: Sent) -> None:
        """The caller gives a call up."""
        self._settle(call.number, "cancelled")
        self.caller.cancel(call.call_id)

    @property
    def speaking(self) -> list[tuple[Sent, InputTruth]]:
        """Inputs of open calls that may say something."""
        calls = self.open_calls if not self.is_cut else []
        return [(call, i) for call in calls for i in call.inputs if not i.has_ended]

    def say(self, call: Sent, truth: InputTruth, kind: InputKind, size: int) -> None:
        """An input says something; an item only within its credit."""
        if kind is InputKind.ITEM and not truth.may_send:
            return
        payload, error = truth.say(kind, size)
        self.caller.inputs.add(call.call_id, truth.number, kind, payload, error)

    def grant(self, call: Sent, items: int, bytes_: int) -> None:
        """The consumer took some of a stream."""
        call.granted.append((items, bytes_))
        self.caller.grant(call.call_id, items, bytes_)

    def _settle(self, number: int, outcome: str) -> None:
        call = self.calls[number]
        assert not call.outcome, f"{call} ended again: {outcome}"
        call.outcome = outcome

    # ------------------------------------------------------------ the replica

    def answer(self, call_id: int, kind: Reply.Kind, size: int) -> None:
        """The user's code gives an item, a result, or its end."""
        call = self.running[call_id]
        has_payload = kind in (Reply.RESULT, Reply.ITEM)
        said = self.said[call.number]
        payload = labelled(f"{call.number}:{len(said)}", size) if has_payload else b""
        said.append(payload)
        self.replica.reply(call_id, kind, payload)
        if kind != Reply.ITEM:
            del self.running[call_id]

    @property
    def listening(self) -> list[tuple[int, InputTruth]]:
        """Inputs of calls that run, by the session id of the call."""
        inputs = (
            (i, t) for i, call in self.running.items() for t in self.calls[call.number].inputs
        )
        # The replica knows of an end when it has heard it.
        return [(i, t) for i, t in inputs if not (t.has_ended and t.heard == len(t.said))]

    def grant_input(
        self, call_id: int, truth: InputTruth, items: int, bytes_: int, is_closed: bool
    ) -> None:
        """The user's code took some of an input, or wants no more of it."""
        items, bytes_, is_closed = truth.grant(items, bytes_, is_closed)
        self.replica.grant_input(call_id, truth.number, items, bytes_, is_closed=is_closed)

    def fail(self, call_id: int, size: int) -> None:
        """The user's code raises."""
        call = self.running.pop(call_id)
        text = f"{call.number};" + "x" * size
        self.replica.fail(call_id, Error(code=Error.USER_EXCEPTION, message=text))

    # ------------------------------------------------------------ the wire

    def write(self, *, by_caller: bool) -> None:
        """One side hands its next message to the network."""
        if by_caller and self.caller.outbox:
            self.to_replica.append(_next_message(self.caller.outbox))
        elif not by_caller and self.replica.outbox:
            self.replica.stamp(len(self.running))
            self.to_caller.append(_next_message(self.replica.outbox))

    def deliver(self, *, to_caller: bool) -> None:
        """The oldest message in one direction arrives."""
        if to_caller and self.to_caller:
            self._caller_hears(self.to_caller.popleft())
        elif not to_caller and self.to_replica:
            self._replica_hears(self.to_replica.popleft())

    def _replica_hears(self, message: bytes) -> None:
        arrival = self.replica.receive(message)
        for inbound in arrival.requests:
            self._start(inbound)
        for call_id, items, bytes_ in arrival.credits:
            if call_id in self.running:
                running = self.running[call_id]
                running.credited.append((items, bytes_))
                granted = self.calls[running.number].granted
                assert running.credited == granted[: len(running.credited)]
        for item in arrival.inputs:
            if item.call_id in self.running:  # else it was turned away in the same message
                self.calls[self.running[item.call_id].number].inputs[item.number].hear(item)
        for call_id in arrival.cancelled:
            if call_id in self.running:  # else it was turned away in the same message
                del self.running[call_id]
        assert self.replica.ongoing_ids == set(self.running)

    def _start(self, inbound: InboundRequest) -> None:
        number = int(inbound.request.request_id)
        call = self.calls[number]
        assert number not in self.handed_over, f"{call} started twice"
        assert number not in self.surely_not_started, f"{call} started after all"
        assert joined(inbound.payload) == call.payload
        assert inbound.template.method == call.envelope.method
        assert inbound.template.stream == call.envelope.stream
        assert inbound.request.timeout_ms == number + 1
        names = [(place.position, place.name) for place in inbound.request.inputs]
        assert names == [(i, f"name{i}" if i else "") for i in range(len(call.inputs))]
        self.handed_over.add(number)
        if inbound.id not in self.replica.ongoing_ids:
            assert call.outcome == "cancelled"  # in the same message
        elif self.is_full:
            self.turned_away.add(number)
            self.replica.reject(inbound.id)
        else:
            self.running[inbound.id] = Running(number, inbound.template.stream)

    def _caller_hears(self, message: bytes) -> None:
        received = self.caller.receive(message)
        for event in received.events:
            self._on_event(event)
        for news in received.inputs:
            self.calls[news.call].inputs[news.number].hear_news(news)
        for number in received.rejected:
            assert number in self.turned_away
            self._settle(number, "rejected")
        for number in received.undelivered:
            self._settle(number, "not started")
            assert number not in self.handed_over
            self.surely_not_started.add(number)
        assert set(self.caller.calls.values()) == {call.number for call in self.open_calls}

    def _on_event(self, event: CallEvent[int]) -> None:
        call = self.calls[event.call]
        assert not call.outcome, f"{call} hears {event} after its end"
        if event.kind == CallEventKind.ERROR:
            assert event.error is not None
            if event.error.code == Error.MESSAGE_TOO_LARGE:
                assert (event.error.size, event.error.limit) == (len(call.payload), LIMIT)
                assert call.number not in self.handed_over
            else:
                assert event.error.message.startswith(f"{call.number};")
            self._settle(call.number, "failed")
            return
        expected = self.said[call.number][len(call.heard)]
        if event.kind == CallEventKind.TOO_LARGE:
            assert (len(expected), len(expected) > LIMIT) == (int(event.payload), True)
            self._settle(call.number, "too large")
            return
        assert joined(event.payload) == expected
        call.heard.append(joined(event.payload))
        if event.kind != CallEventKind.ITEM:
            assert call.heard == self.said[call.number]
            self._settle(call.number, "succeeded")

    # ------------------------------------------------------------ the end

    def cut(self) -> None:
        """The connection is gone, with whatever was on its way."""
        self.is_cut = True
        self.to_caller.clear()
        self.to_replica.clear()
        for number, may_have_started in self.caller.close():
            self._settle(number, "lost" if may_have_started else "not started")
            if not may_have_started:
                assert number not in self.handed_over
        assert set(self.replica.close()) == set(self.running)
        self.running.clear()

    def quiesce(self) -> None:
        """Let everything that was begun come to its end, then check that nothing is left."""
        self.is_full = False
        while not self.is_cut and self._is_busy():
            for call_id in list(self.running):
                kind = Reply.END if self.running[call_id].is_stream else Reply.RESULT
                self.answer(call_id, kind, 3)
            for by_caller in (True, False):
                self.write(by_caller=by_caller)
            for to_caller in (True, False):
                self.deliver(to_caller=to_caller)
        assert [call for call in self.calls.values() if not call.outcome] == []
        if not self.is_cut:
            for machine in (self.caller, self.replica):
                assert machine.outbox.queued_bytes == 0
                assert machine._assembler.total_bytes == 0
                assert not machine._assembler._sizes
            self.cut()
        assert not self.caller.calls
        assert not self.replica.ongoing_ids

    def _is_busy(self) -> bool:
        waiting: Any = (self.caller.outbox, self.replica.outbox, self.to_caller, self.to_replica)
        return bool(self.running) or any(waiting)
