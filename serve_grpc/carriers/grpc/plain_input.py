"""The stream among the arguments of a call through the plain door, as its client sends it.

gRPC holds the client back: the next message is read only while there is credit. Invariant: no read
is given up before the call is over, for gRPC then reads no more of it; and the end of the client's
messages is no end of the stream, for a cancel looks the same (both in findings/).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serve_grpc._generated.replica_pb2 import CallPart, Error, Input
from serve_grpc.foreign import name_of, text_of
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.flow import ProducerWindow
from serve_grpc.protocol.input_items import InboundItem, InputKind
from serve_grpc.protocol.status import request_too_large

__all__ = ["PlainInput"]


class PlainInput:
    """Reads it. All of it runs on the server's loop.

    Args:
        place: Where it stands among the arguments.
        read: Gives the next message, or `grpc.aio.EOF`.
        window: Items and bytes that the handler is sent ahead.
        max_item_bytes: Largest item.

    Attributes:
        place: Where it stands among the arguments.
        feed: Takes what comes; None until somebody does.
    """

    def __init__(
        self,
        place: Input,
        read: Callable[[], Awaitable[Any]],
        window: tuple[int, int],
        max_item_bytes: int,
    ) -> None:
        self.place = InputPlace(place.position, place.name)
        self.feed: Callable[[InboundItem], None] | None = None
        self._read = read
        self._window = ProducerWindow(*window)
        self._max_item_bytes = max_item_bytes
        self._is_closed = False
        self._granted: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Feed all that comes, until its end or its failure."""
        assert self.feed is not None
        while True:
            item = await self._next()
            if item.kind == _ITEM:
                await self._wait_credit(len(item.payload))
            self.feed(item)
            if item.kind != _ITEM:
                return

    async def _next(self) -> InboundItem:
        try:
            data = await self._read()
        except Exception as error:  # the call is over
            return _failed(Error.CANCELLED, f"{name_of(error)}: {text_of(error)}")
        if data is grpc.aio.EOF:
            return _failed(Error.CANCELLED, "the client's messages ended without `end`")
        try:
            part = CallPart.FromString(data)
        except DecodeError as error:
            return _failed(Error.INVALID_REQUEST, f"not a CallPart: {error}")
        kind = part.WhichOneof("part")
        if kind == "item":
            if len(part.item) <= self._max_item_bytes:
                return InboundItem(0, 0, _ITEM, part.item, None)
            error_ = request_too_large(len(part.item), self._max_item_bytes)
            return InboundItem(0, 0, InputKind.ERROR, b"", error_)
        if kind == "end" and part.end:
            return InboundItem(0, 0, InputKind.END, b"", None)
        return _failed(
            Error.INVALID_REQUEST, f"a message with {kind} is neither an item nor an end"
        )

    async def _wait_credit(self, size: int) -> None:
        # Closed: what the handler does not want is read all the same, and dropped. A client that is
        # held back for ever could not even read the answer.
        while not self._window.is_open and not self._is_closed:
            self._granted = asyncio.get_running_loop().create_future()
            await self._granted
        self._window.spend(size)

    def grant(self, number: int, items: int, bytes_: int, is_closed: bool) -> None:
        """The handler took so much, or wants no more; `number` is 0, for there is one."""
        self._window.grant(items, bytes_)
        self._is_closed |= is_closed
        if self._granted is not None and not self._granted.done():
            self._granted.set_result(None)


def _failed(code: Error.Code, message: str) -> InboundItem:
    return InboundItem(0, 0, InputKind.ERROR, b"", Error(code=code, message=message))


_ITEM = InputKind.ITEM
