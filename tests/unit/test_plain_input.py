"""The stream among the arguments of a plain call: what it makes of its client's messages."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from serve_grpc._generated.replica_pb2 import CallPart, Error, Input
from serve_grpc.carriers.grpc.plain_input import PlainInput
from serve_grpc.protocol.input_items import InboundItem, InputKind

END = CallPart(end=True)


class Client:
    """What a client sends, and how much of it was read."""

    def __init__(self, *messages: object) -> None:
        self.messages = list(messages)
        self.reads = 0

    async def read(self) -> object:
        self.reads += 1
        message = self.messages.pop(0) if self.messages else grpc.aio.EOF
        if isinstance(message, Exception):
            raise message
        return message.SerializeToString() if isinstance(message, CallPart) else message


def new_input(client: Client, window: tuple[int, int] = (8, 100)) -> tuple[PlainInput, list]:
    fed: list[InboundItem] = []
    input_ = PlainInput(Input(position=2, name="words"), client.read, window, 50)
    input_.feed = fed.append
    return input_, fed


def items(*payloads: bytes) -> list[CallPart]:
    return [CallPart(item=payload) for payload in payloads]


def heard(*messages: object) -> list[InboundItem]:
    input_, fed = new_input(Client(*messages))
    asyncio.run(input_.run())
    return fed


def test_items_and_the_end_are_fed_in_order() -> None:
    assert heard(*items(b"a", b"", b"c"), END) == [
        *(InboundItem(0, 0, InputKind.ITEM, payload, None) for payload in (b"a", b"", b"c")),
        InboundItem(0, 0, InputKind.END, b"", None),
    ]


@pytest.mark.parametrize(
    ("last", "code", "text"),
    [
        (grpc.aio.EOF, Error.CANCELLED, "without `end`"),
        (RuntimeError("the call is over"), Error.CANCELLED, "RuntimeError: the call is over"),
        (b"\xff", Error.INVALID_REQUEST, "not a CallPart"),
        (CallPart(), Error.INVALID_REQUEST, "neither an item nor an end"),
        (CallPart(end=False), Error.INVALID_REQUEST, "neither an item nor an end"),
        (CallPart(start=CallPart.Start()), Error.INVALID_REQUEST, "neither an item nor an end"),
        (CallPart(item=b"x" * 51), Error.MESSAGE_TOO_LARGE, ""),
    ],
    ids=["half-close", "broken off", "noise", "nothing", "no end", "a second start", "too large"],
)
def test_all_else_is_an_error_and_the_last_thing_that_is_read(last, code, text) -> None:
    first, error = heard(*items(b"a"), last, *items(b"b"), END)
    assert (first.payload, error.kind) == (b"a", InputKind.ERROR)
    assert error.error is not None
    assert error.error.code == code
    assert text in error.error.message


def test_no_more_is_read_than_there_is_credit_for() -> None:
    async def main() -> None:
        client = Client(*items(*(b"x" * 10 for _ in range(9))), END)
        input_, fed = new_input(client, (3, 1000))
        reading = asyncio.ensure_future(input_.run())
        await turns()
        assert (len(fed), client.reads) == (3, 4)  # one is here, and waits
        input_.grant(0, 2, 20, False)
        await turns()
        assert (len(fed), client.reads) == (5, 6)
        input_.grant(0, 8, 80, False)
        await asyncio.wait_for(reading, 5)
        assert len(fed) == 10

    asyncio.run(main())


def test_what_the_handler_does_not_want_is_read_all_the_same() -> None:
    async def main() -> None:
        input_, fed = new_input(Client(*items(*(b"x" * 10 for _ in range(9))), END), (1, 10))
        reading = asyncio.ensure_future(input_.run())
        await turns()
        input_.grant(0, 0, 0, True)
        await asyncio.wait_for(reading, 5)
        assert fed[-1].kind == InputKind.END

    asyncio.run(main())


async def turns() -> None:
    """Let what can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)
