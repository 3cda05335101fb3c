"""The way of a sent call's inputs, to the session that has the call; on the transport's loop."""

from __future__ import annotations

from typing import Protocol

from serve_grpc.caller.item_writer import Entry
from serve_grpc.caller.lending import Lender, Loan
from serve_grpc.caller.outcomes import Outcome
from serve_grpc.caller.session import Session
from serve_grpc.carriers.counters import Counters
from serve_grpc.payload import Payload, Segments, refs_of
from serve_grpc.pickling import readable
from serve_grpc.protocol.input_items import InputKind

__all__ = ["InputWay", "Sender"]


class Sender(Protocol):
    """A delivery, by what is done to it here."""

    loan: Loan | None

    def end(self, outcome: Outcome) -> bool:
        """End the call."""


class InputWay:
    """Args: `sender`, whose call it is; `call_id`, of the call in this session; `lender` and
    `counters`, of its connection.

    Attributes:
        sender: As given.
        credit: First credit of each input, in items and bytes.
        windows: What may be sent of each.
    """

    def __init__(
        self, sender: Sender, call_id: int, session: Session, lender: Lender, counters: Counters
    ) -> None:
        credit = session.machine.inputs.credit
        assert credit is not None, "refused before (`refusal`)"
        self.sender = sender
        self.credit: tuple[int, int] = credit
        self.windows = session.machine.inputs.windows[call_id]
        self._call_id = call_id
        self._session = session
        self._lender = lender
        self._counters = counters
        # Bound once, for both are used for each item.
        self._send, self._calls = session.machine.inputs.add, session.machine.calls

    def send(self, number: int, entry: Entry) -> None:
        """Queue what an input has to say."""
        kind, payload, error = entry
        if type(payload) is Segments:  # most are small
            self._lend(payload)
            payload = readable(payload, self._session.machine.reads_buffers)
        self._send(self._call_id, number, kind, payload, error)
        if kind is _ITEM:
            counters = self._counters
            counters.inputs_sent += 1
            counters.input_bytes_sent += len(payload)

    def _lend(self, payload: Payload) -> None:
        if refs := refs_of(payload):
            sender = self.sender
            sender.loan = sender.loan or Loan(())
            sender.loan.take_on(refs, self._lender, self._session.machine.epoch, self._call_id)

    def kick_request(self) -> None:
        """Have the request written, and what follows it in this turn of the loop."""
        self._session.kick()

    def kick(self) -> None:
        """Have the queued written."""
        if len(self._calls) == 1:
            self._session.kick_item()
        else:  # others fill the message
            self._session.kick()


_ITEM = InputKind.ITEM  # looking it up on the class of an enum is a call on CPython 3.10 and 3.11
