"""Inboxes without a session, what their callers are told, and streams of them."""

from __future__ import annotations

from typing import Any

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.errors import RequestStreamError
from serve_grpc.protocol.input_items import InboundItem, InputKind
from serve_grpc.request_stream import RequestStream
from serve_grpc.serialization import get_serializer
from serve_grpc.streams.inbox import Inbox

PICKLE = get_serializer("pickle")


class Fed:
    """An inbox, fed by hand. `told` is what its caller hears: (items, bytes, whether closed)."""

    def __init__(self, serializer: str = "pickle", window: tuple[int, int] = (4, 1000)) -> None:
        self.told: list[tuple[int, int, bool]] = []
        self.inbox = Inbox(serializer, window, self._grant, self._load_error)

    def _grant(self, items: int, bytes_: int, is_closed: bool) -> None:
        self.told.append((items, bytes_, is_closed))

    def _load_error(self, error: Error) -> RequestStreamError:
        return RequestStreamError(error.message, cause=ValueError(error.message))

    def feed(self, *values: Any) -> None:
        """One item each."""
        for value in values:
            self.feed_payload(PICKLE.dump_item(value))

    def feed_payload(self, payload: Any) -> None:
        self.inbox.feed(InboundItem(1, 0, InputKind.ITEM, payload, None))

    def end(self) -> None:
        self.inbox.feed(InboundItem(1, 0, InputKind.END, b"", None))

    def fail(self, message: str = "failed") -> None:
        self.inbox.feed(InboundItem(1, 0, InputKind.ERROR, b"", Error(message=message)))

    @property
    def is_closed(self) -> bool:
        """Whether its caller was told that no more is wanted."""
        return (0, 0, True) in self.told


def of_items(*items: Any, **changes: Any) -> tuple[Fed, RequestStream]:
    """A stream of so many items, and its end."""
    fed = Fed(**changes)
    fed.feed(*items)
    fed.end()
    return fed, RequestStream(fed.inbox)
