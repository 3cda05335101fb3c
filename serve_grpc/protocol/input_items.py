"""Inputs: streams that are arguments of requests, item by item from the caller to the replica.

An input is known by its call and its number. The replica gives credit for each, as a caller does
for a stream of results; a window of it is there from the start. Invariants: items of one input
arrive in the order in which they were sent, and behind their request; nothing follows the end of an
input, which is one frame; a call that is over has none.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Error,
    InputCredit,
    InputItem,
    ReplicaBatch,
    Welcome,
)
from serve_grpc.payload import Payload, joined
from serve_grpc.protocol import wire
from serve_grpc.protocol.assembler import Assembler, PayloadOverflow
from serve_grpc.protocol.flow import ProducerWindow
from serve_grpc.protocol.handshake import INPUTS
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.status import read_error, request_too_large, shortened
from serve_grpc.protocol.wire import WireError

__all__ = ["InboundItem", "InputKind", "InputNews", "ReceivedInputs", "SentInputs"]


class InputKind(enum.IntEnum):
    """What an input has to say; the values of InputItem.Kind."""

    ITEM = InputItem.ITEM
    END = InputItem.END
    ERROR = InputItem.ERROR


class InboundItem(NamedTuple):
    """What an input of a call had to say. `payload` is of an item, `error` of a failed input."""

    call_id: int
    number: int
    kind: int
    payload: Payload
    error: Error | None


class InputNews(NamedTuple):
    """What a replica said of an input: it grants so much more, or wants no more.

    `call` is what the owner gave to `request`.
    """

    call: Any
    number: int
    items: int
    bytes_: int
    is_closed: bool


class SentInputs:
    """The inputs of one session, on the caller's side.

    Args:
        outbox: Where their frames go.

    Attributes:
        credit: First credit of each input, in items and bytes; None if the replica takes none.
        windows: What may be sent of each input, by call; most sessions have none.
    """

    def __init__(self, outbox: Outbox[CallerBatch]) -> None:
        self._outbox = outbox
        self._max_message_bytes = 0
        self.credit: tuple[int, int] | None = None
        self.windows: dict[int, list[ProducerWindow]] = {}

    def hear(self, welcome: Welcome) -> None:
        """What the replica says of inputs when the session opens."""
        self._max_message_bytes = welcome.max_message_bytes
        if INPUTS in welcome.features:
            # What is sent and not read waits here if the replica is slow, whatever it has allowed.
            self.credit = (
                min(welcome.input_credit_items, wire.MAX_INPUT_CREDIT_ITEMS),
                min(welcome.input_credit_bytes, wire.MAX_INPUT_CREDIT_BYTES),
            )

    def open(self, call_id: int, count: int) -> None:
        """A call with so many inputs is sent."""
        assert self.credit is not None, "the replica takes none"
        first = self.credit
        self.windows[call_id] = [ProducerWindow(*first) for _ in range(count)]

    def knows(self, call_id: int, number: int) -> bool:
        """Whether a call that is not over has this input."""
        return number < len(self.windows.get(call_id, ()))

    def add(
        self,
        call_id: int,
        number: int,
        kind: InputKind,
        payload: Payload = b"",
        error: Error | None = None,
    ) -> None:
        """Queue what an input has to say; dropped once its call is over.

        Args:
            call_id, number: Of the input.
            kind: An item needs credit.
            payload: The item.
            error: Why the input failed.
        """
        windows = self.windows.get(call_id)
        if windows is None:
            return
        if kind is _ITEM:
            windows[number].spend(len(payload))
        elif error is not None:
            payload, error = self._limited(error)
        outbox = self._outbox
        if len(payload) > wire.INLINE_BYTES:
            outbox.send_large(
                call_id, payload, lambda: self._queue(call_id, number, kind, b"", None)
            )
        elif outbox.has_large(call_id):  # the request itself, or an item before this one
            small = joined(payload)
            outbox.send_after_large(
                call_id, lambda: self._queue(call_id, number, kind, small, error)
            )
        else:
            self._queue(call_id, number, kind, joined(payload), error)

    def _limited(self, error: Error) -> tuple[bytes, Error | None]:
        """An error as it may travel: as it is, cut, or serialized if it is large."""
        if error.ByteSize() > self._max_message_bytes:
            error = shortened(error)
        if error.ByteSize() > wire.INLINE_BYTES:
            return error.SerializeToString(), None
        return b"", error

    def _queue(
        self, call_id: int, number: int, kind: InputKind, payload: bytes, error: Error | None
    ) -> None:
        self._outbox.batch.input_items.add(
            id=call_id, number=number, kind=kind.value, payload=payload, error=error
        )
        self._outbox.added(len(payload) + (error.ByteSize() if error is not None else 0))

    def news(self, credits_: Iterable[InputCredit], calls: Mapping[int, Any]) -> list[InputNews]:
        """What a message says of inputs; of `calls` that are not over.

        Raises:
            WireError: There is no such input, or it is granted more than it has sent: that would
                have this side make items without end, and keep them.
        """
        news = []
        for credit in credits_:
            if (call := calls.get(credit.id)) is not None:  # else it was given up meanwhile
                if not self.knows(credit.id, credit.number):
                    raise WireError(f"credit for input {credit.number} of call {credit.id}")
                window = self.windows[credit.id][credit.number]
                window.grant(credit.items, credit.bytes)
                if not window.is_within(*(self.credit or (0, 0))):
                    raise WireError(f"too much credit for input {credit.number} of {credit.id}")
                granted = credit.items, credit.bytes, credit.closed
                news.append(InputNews(call, credit.number, *granted))
        return news

    def close(self, call_id: int) -> None:
        """The call is over. What has left of an item is dropped at the replica as well."""
        if self.windows.pop(call_id, None) is not None and self._outbox.has_large(call_id):
            # The frame that owns it will not come, and nothing else tells the replica.
            self._outbox.batch.cancels.append(call_id)
            self._outbox.added()

    def clear(self) -> None:
        """The session is over."""
        self.windows.clear()


class ReceivedInputs:
    """The inputs of one session, on the replica's side.

    Args:
        outbox: Where credit goes.
        assembler: Has the large items.
        credit: First credit of each input, in items and bytes; None if none is taken.
        max_message_bytes: Largest item.

    Attributes:
        windows: What may be sent of each input, by call, None for one that has ended; most sessions
            have none.
    """

    def __init__(
        self,
        outbox: Outbox[ReplicaBatch],
        assembler: Assembler,
        credit: tuple[int, int] | None,
        max_message_bytes: int,
    ) -> None:
        self._outbox = outbox
        self._assembler = assembler
        self._credit = credit
        self._max_message_bytes = max_message_bytes
        self.windows: dict[int, list[ProducerWindow | None]] = {}

    def open(self, call_id: int, count: int) -> None:
        """A call with inputs was read.

        Raises:
            WireError: It has too many, or this side never said that it takes any.
        """
        if self._credit is None:
            raise WireError(f"call {call_id} has inputs, which were not agreed on")
        if count > wire.MAX_INPUTS:
            raise WireError(f"call {call_id} has over {wire.MAX_INPUTS} inputs")
        first = self._credit
        self.windows[call_id] = [ProducerWindow(*first) for _ in range(count)]

    def grant(
        self, call_id: int, number: int, items: int, bytes_: int, *, is_closed: bool = False
    ) -> None:
        """Let the caller send so much more of an input; ignored once that or its call is over.

        Args:
            call_id, number: Of the input.
            items, bytes_: Beside what was granted.
            is_closed: Whether no more of it is wanted.
        """
        window = self.windows[call_id][number] if call_id in self.windows else None
        if window is not None:
            window.grant(items, bytes_)
            self._outbox.batch.input_credits.add(
                id=call_id, number=number, items=items, bytes=bytes_, closed=is_closed
            )
            self._outbox.added()

    def receive(self, items: Iterable[InputItem], ongoing: Container[int]) -> list[InboundItem]:
        """Read what a message says of inputs.

        Args:
            items: Its frames.
            ongoing: Calls that are not over.

        Returns:
            What they say. An item over the limit is an error of its input.

        Raises:
            WireError: There is no such input, it has ended, or it has no credit for an item.
        """
        received = []
        for item in items:
            if item.id in ongoing:
                received.append(self._receive(item))
            else:
                self._assembler.discard(item.id)  # the call was over before its caller knew
        return received

    def _receive(self, item: InputItem) -> InboundItem:
        call_id, number, kind = item.id, item.number, int(item.kind)
        windows = self.windows.get(call_id, [])
        window = windows[number] if number < len(windows) else None
        if window is None:
            raise WireError(f"call {call_id} has no input {number}, or that has ended")
        if kind == _ITEM:
            return self._item(item, window)
        windows[number] = None
        if kind == _END:
            return InboundItem(call_id, number, kind, b"", None)
        if kind == _ERROR:
            return InboundItem(call_id, number, kind, b"", read_error(item, self._assembler))
        raise WireError(f"input item of unknown kind {kind}")

    def _item(self, item: InputItem, window: ProducerWindow) -> InboundItem:
        call_id, number = item.id, item.number
        if not window.is_open:
            # As of a stream of results: who sends without credit can fill our memory.
            raise WireError(f"an item of input {number} of call {call_id} without credit")
        try:
            # Read once: who does may write where it lies.
            payload = self._assembler.take(call_id, item.payload, True)
        except PayloadOverflow as overflow:
            window.spend(overflow.size)
            error = request_too_large(overflow.size, self._max_message_bytes)
            return InboundItem(call_id, number, InputKind.ERROR, b"", error)
        window.spend(len(payload))
        return InboundItem(call_id, number, _ITEM, payload, None)

    def clear(self) -> None:
        """The session is over."""
        self.windows.clear()


# Looking one up on the class of an enum is a call on CPython 3.10 and 3.11.
_ITEM, _END, _ERROR = InputKind.ITEM, InputKind.END, InputKind.ERROR
