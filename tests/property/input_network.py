"""The inputs of the calls of a `Network`: what each caller said, and what of it each replica heard.

Every item says which input it belongs to, and where it stands in it, so that each step checks
itself: items arrive in order, none twice, none after the end, and never more than was granted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.payload import joined
from serve_grpc.protocol.flow import ProducerWindow
from serve_grpc.protocol.input_items import InboundItem, InputKind, InputNews

__all__ = ["CREDIT", "InputTruth"]

CREDIT = 3, 60
"""First credit of each input: a few small items, or one of the largest."""


@dataclass
class InputTruth:
    """One input.

    Attributes:
        number: In its call.
        label: What its items begin with.
        said: All that the caller said, in order: kind and bytes.
        heard: How many of these the replica has heard.
        granted, told: Credit that the replica gave, and how much of it the caller knows.
        limit: Largest item that the replica takes, in bytes.
        window: What the caller may send.
    """

    number: int
    label: str
    limit: int
    window: ProducerWindow = field(default_factory=lambda: ProducerWindow(*CREDIT))
    said: list[tuple[InputKind, bytes]] = field(default_factory=list)
    heard: int = 0
    granted: list[tuple[int, int, bool]] = field(default_factory=list)
    told: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether its caller has said its last word."""
        return bool(self.said) and self.said[-1][0] is not InputKind.ITEM

    @property
    def may_send(self) -> bool:
        """Whether its caller may send an item."""
        return not self.has_ended and self.window.is_open

    def grant(self, items: int, bytes_: int, is_closed: bool) -> tuple[int, int, bool]:
        """What the replica grants when it is asked to: never more than it has heard."""
        heard = [said for kind, said in self.said[: self.heard] if kind is InputKind.ITEM]
        given_items, given_bytes = (sum(g[i] for g in self.granted) for i in (0, 1))
        granted = (
            min(items, len(heard) - given_items),
            min(bytes_, sum(map(len, heard)) - given_bytes),
            is_closed,
        )
        self.granted.append(granted)
        return granted

    def say(self, kind: InputKind, size: int) -> tuple[bytes, Error | None]:
        """The caller says something; returns payload and error of the frame."""
        text = f"{self.label}:{len(self.said)};"
        payload = text.encode() + b"x" * size if kind is InputKind.ITEM else b""
        if kind is InputKind.ITEM:
            self.window.spend(len(payload))
        # Longer than what is sent in one frame.
        error = Error(message=text + "y" * size) if kind is InputKind.ERROR else None
        self.said.append((kind, payload or text.encode()))
        return payload, error

    def hear(self, item: InboundItem) -> None:
        """The replica hears something."""
        kind, said = self.said[self.heard]
        self.heard += 1
        if len(said) > self.limit:
            assert item.error is not None
            assert (item.kind, item.error.code) == (InputKind.ERROR, Error.MESSAGE_TOO_LARGE)
            assert (item.error.size, item.error.limit) == (len(said), self.limit)
            return
        assert item.kind == kind
        if kind is InputKind.ITEM:
            assert joined(item.payload) == said
        elif kind is InputKind.ERROR:
            assert item.error is not None
            assert item.error.message.encode().startswith(said)

    def hear_news(self, news: InputNews) -> None:
        """The caller hears of credit."""
        assert (news.items, news.bytes_, news.is_closed) == self.granted[self.told]
        self.told += 1
        self.window.grant(news.items, news.bytes_)
