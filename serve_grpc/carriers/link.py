"""What a session needs of whatever carries it: messages one way, messages the other way, an end.

A carrier (gRPC, memory) gives links and maps its own errors to `LinkLost` in its own files. A link
knows nothing of sessions, and tries nothing twice. Invariant: once `read` has returned None or has
raised LinkLost, and after `abort` or `close`, every `read` and `write` raises LinkLost.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Protocol

from serve_grpc.config import Settings
from serve_grpc.protocol.places import LinkMemory

__all__ = ["SESSION_MESSAGE_BYTES", "Cause", "Dial", "Link", "LinkLost"]

SESSION_MESSAGE_BYTES = 4 * 1024 * 1024
"""What any carrier takes; no batch comes near this: 64 KiB of frames and 1 MiB of fragments."""


class LinkLost(Exception):
    """No message comes or goes any more.

    Attributes:
        reason: Why, for people.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Cause(enum.Enum):
    """Why a link is aborted, for peers and proxies that read codes and not texts."""

    LEFT = "this side has no more use for it"
    LIMIT = "the peer took too much, or too long"
    MISDIRECTED = "the peer means somebody else"
    VERSION = "the peer speaks another version"
    UNAUTHENTICATED = "the peer could not prove itself"
    DRAINING = "this side is about to end"
    INVALID = "the peer broke the protocol"


class Link(Protocol):
    """One session's messages. One `read` and one `write` at a time, all on one event loop.

    Attributes:
        carrier: What it goes over, for people: "grpc", "local" or "memory".
    """

    carrier: str

    @property
    def memory(self) -> LinkMemory | None:
        """What the two ends share beside messages; None if nothing."""

    async def read(self) -> bytes | None:
        """The next message; None if the other side has closed the link, and nothing is left.

        Raises:
            LinkLost: The link was aborted, here or there, or broke.
        """

    async def write(self, message: bytes) -> None:
        """Send a message; returns when the carrier has room for the next one.

        The first step of this coroutine hands the message over. So a write that is cancelled is
        still under way, and none may follow it.

        Raises:
            LinkLost: As of `read`.
        """

    async def abort(self, cause: Cause, reason: str) -> None:
        """End the link at once; the other side hears why if the carrier can tell it.

        Does not wait for a peer that reads nothing. `close` still has to follow.
        """

    async def close(self) -> None:
        """End the link in peace, and let go of what it holds; nothing happens the second time.

        The other side reads what was written before, then None.
        """


Dial = Callable[[str, Settings], Awaitable[Link]]
"""Makes a link to "host:port", with the settings for TLS. It may be that nobody is reached: then
the first `read` or `write` raises LinkLost, or the dial itself does."""
