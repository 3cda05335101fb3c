"""What a delivery asks of others: of who chose its replica, and of who has it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.outcomes import Lost, Outcome

__all__ = ["Chooser", "Stage"]

D = TypeVar("D", contravariant=True)
"""A delivery, which is told of by its own module."""


class Stage(Protocol[D]):
    """Where a call is while no session of ours carries it: it waits, or Serve has it."""

    # Whether the user's code may run by now; an `Expired` that ends the call here says so.
    may_have_started: bool

    def withdraw(self, delivery: D) -> None:
        """The call is ending: let go of it."""

    def grant(self, items: int, bytes_: int) -> None:
        """The consumer took this much of the stream."""

    def describe(self) -> str:
        """Where the call is, in a word or two, for `repr`: "queued"."""


class Chooser(Protocol[D]):
    """Who chose the replica. It is asked what becomes of a call that comes back from there."""

    def on_sent(self, replica_id: str) -> None:
        """A call of it is on this replica now."""

    def on_left(self, replica_id: str) -> None:
        """The call is on this replica no longer, whatever came of it."""

    def on_answered(self, delivery: D, connection: Connection, error: Error | None) -> None:
        """The replica had the last word on the call; `error` if it says that the call failed."""

    def on_rejected(self, delivery: D, connection: Connection) -> None:
        """The replica was full: find another one, let the call wait, or wait for a cancel."""

    def on_ready(self, delivery: D) -> None:
        """The call was to be sent, and had to wait for itself: now it can be."""

    def takes_back(self, delivery: D, lost: Lost) -> bool:
        """The session was lost: send the call again some time, or say that it ends with this."""

    @property
    def on_end(self) -> Callable[[D, Outcome], None] | None:
        """Told that a call is about to end so; None if that is no news to it."""

    def trouble(self) -> str:
        """Why a call may wait so long; "" if that is not known."""
