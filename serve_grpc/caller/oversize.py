"""Calls whose request or result is over the message limit, while Ray's object store is asked.

Each is a stage of its delivery: nothing of the call is on a session meanwhile, and a cancel or its
deadline ends it as ever. A request is put when a replica was chosen that takes it so; then its
chooser is asked once more. A result is fetched before its call ends, so whoever consumes it finds
it as it would have come. On the transport's loop, which waits for neither.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from serve_grpc.caller.call import Call
from serve_grpc.caller.events import note
from serve_grpc.caller.lending import Borrowed, Loan
from serve_grpc.caller.outcomes import Cancelled, GivenUp, Outcome, Raised, Result
from serve_grpc.config import LOGGER_NAME
from serve_grpc.debugging import is_debugged
from serve_grpc.errors import ServeGrpcError
from serve_grpc.foreign import run_foreign
from serve_grpc.payload import Payload, Segments
from serve_grpc.routing.peer import ReplicaFacts
from serve_grpc.storing import StoreError, fetch, put

__all__ = ["Fetching", "Putting"]

logger = logging.getLogger(LOGGER_NAME)


class _Waiting(Protocol):
    """A delivery, by what its stages here do to it."""

    call: Call
    loan: Loan | None

    def on_put(self, payload: Segments) -> None:
        """Its request is in the store: it may be sent."""

    def end(self, outcome: Outcome) -> bool:
        """End the call."""

    def lose(self, facts: ReplicaFacts, reason: str, *, may_have_started: bool) -> None:
        """The result was lost with its replica."""


class _Stage:
    """What both have in common. Starts at once.

    Args:
        delivery: Of the call.
        where: Where the call is meanwhile, for people.
        work: Brings it on from there; not called if the call ends before its first step.
        may_have_started: Whether the replica may have begun with the call.
    """

    def __init__(
        self,
        delivery: _Waiting,
        where: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        may_have_started: bool,
    ) -> None:
        self.may_have_started = may_have_started
        self._delivery = delivery
        self._where = where
        if is_debugged():
            note("request %s: %s", delivery.call.fields.request_id, where)
        # Kept here: a loop holds its tasks weakly.
        self._task = asyncio.get_running_loop().create_task(self._guarded(work))

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            # Whoever gives the call up has ended it by now. Else this loop ends.
            self._delivery.end(Cancelled())
            raise
        except Exception as error:
            # As in `events`: a call that never ends is the worst end.
            run_foreign("log", logger.exception, "could not handle %r", self._delivery)
            text = f"its payload could not be handled: {error!r}"
            self._delivery.end(GivenUp(text, may_have_executed=self.may_have_started))

    def describe(self) -> str:
        """Where the call is."""
        return self._where

    def withdraw(self, _: Any) -> None:
        """The call is ending: let go of it."""
        if asyncio.current_task() is not self._task:  # else it is this that ends the call
            self._task.cancel()

    def grant(self, items: int, bytes_: int) -> None:
        """Nothing came of a stream whose request has not left; results are no streams."""


class Putting(_Stage):
    """A request on its way into the store. Args: `delivery`, `payload` of its call."""

    def __init__(self, delivery: _Waiting, payload: Payload) -> None:
        work = functools.partial(_put, delivery, payload)
        super().__init__(delivery, "storing its request", work, may_have_started=False)


async def _put(delivery: _Waiting, payload: Payload) -> None:
    try:
        stored = await put(payload)
    except StoreError as reason:
        text = f"the request of {len(payload)} bytes is over the message limit, and {reason}"
        error = ServeGrpcError(text, request_id=delivery.call.fields.request_id)
        error.__cause__ = reason
        delivery.end(Raised(error))
    else:
        delivery.on_put(stored)


class Fetching(_Stage):
    """A result on its way out of the store.

    Args:
        delivery: Of the call.
        payload: As the reply named it; its refs are being fetched.
        facts: Of the replica.
    """

    def __init__(self, delivery: _Waiting, payload: Segments, facts: ReplicaFacts) -> None:
        work = functools.partial(_fetch, delivery, payload, facts)
        super().__init__(delivery, "fetching its result", work, may_have_started=True)


async def _fetch(delivery: _Waiting, payload: Segments, facts: ReplicaFacts) -> None:
    refs = payload.refs
    assert isinstance(refs, Borrowed), "the session asked for them before it told of the reply"
    try:
        await asyncio.wrap_future(refs.fetched)
        if not refs:
            raise StoreError("it left with its replica", owner_died=True)
        result = await fetch(refs[0])
    except StoreError as reason:
        text = f"the result of {len(payload)} bytes could not be fetched from Ray's"
        text = f"{text} object store: {reason}"
        if reason.owner_died:
            delivery.lose(facts, text, may_have_started=True)
        else:
            delivery.end(GivenUp(text, may_have_executed=True))
    else:
        # The bytes hold their memory by themselves. The ref is let go of: so the replica learns
        # that they were fetched. Those that the bytes name stay with them.
        result.refs = refs[1:]
        refs.clear()
        delivery.end(Result(result))
