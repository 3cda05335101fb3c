"""The inputs of one call with sources that a test plays, over a session that it plays as well."""

from __future__ import annotations

import asyncio
from typing import Any

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    InputCredit,
    InputItem,
)
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.inputs import Inputs
from serve_grpc.caller.item_writer import END, Entry, Terms
from serve_grpc.caller.sources import Sink
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind
from tests.unit.message_of_replies import Line
from tests.unit.sessions import fields

__all__ = ["CREDIT", "Scene", "Scripted", "item"]

CREDIT = (3, 1000)


def item(payload: Any) -> Entry:
    return Entry(InputKind.ITEM, payload, None)


class Scripted:
    """A source whose items the test makes."""

    is_lost = False
    counts_untaken = True

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.terms: list[Terms] = []
        self.granted: list[tuple[int, int]] = []
        self.taken: list[int] = []
        self.stops = 0

    def start(self, sink: Sink, terms: Terms) -> None:
        self.sink = sink
        self.terms.append(terms)

    def grant(self, items: int, bytes_: int) -> None:
        self.granted.append((items, bytes_))

    def taken_over(self, size: int) -> None:
        self.taken.append(size)

    def stop(self) -> None:
        self.stops += 1

    def put(self, *payloads: bytes) -> None:
        assert self.sink is not None
        for payload in payloads:
            self.sink((item(payload),))

    def end(self) -> None:
        assert self.sink is not None
        self.sink((END,))


class Scene(Line):
    """An open session, and one call with inputs, which is not sent yet."""

    def __init__(self, count: int = 1, credit: tuple[int, int] | None = CREDIT) -> None:
        super().__init__(input_credit=credit)
        self.sources = [Scripted() for _ in range(count)]
        self.source = self.sources[0]
        self.inputs = Inputs(
            tuple(InputPlace(n, "") for n in range(count)), self.sources, self._mailbox
        )
        request = fields(b"request", request_id="a", inputs=self.inputs.places)
        self.call = self._new_call(request, mailbox=self._mailbox, response_loads=bytes)
        self.way = Delivery(self.call, self.chooser)
        self.way.inputs = self.inputs
        self.inputs.belong_to(self.way)

    def go(self) -> None:
        """Send the call."""
        assert self.way.send(self.connection)
        self.ids["a"] = self.way._call_id

    async def left(self) -> list[tuple[int, str, bytes]]:
        """Number, kind and payload of what leaves of the inputs; of all messages till now."""
        await asyncio.sleep(0)  # for what was posted
        session = self.connection._session
        assert session is not None
        found = []
        while session.machine.outbox:
            batch = CallerBatch.FromString(session.machine.outbox.take())
            found += [(i.number, InputItem.Kind.Name(i.kind), i.payload) for i in batch.input_items]
        return found

    def credit(self, items: int, bytes_: int, number: int = 0, *, closed: bool = False) -> None:
        """The replica says something of an input."""
        news = InputCredit(
            id=self.ids["a"], number=number, items=items, bytes=bytes_, closed=closed
        )
        self.hear(input_credits=[news])
