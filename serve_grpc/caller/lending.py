"""ObjectRefs that calls lend and borrow, made known to Ray in the background.

Ray frees an object once no process is known to hold a reference, and it learns who does from its
own calls only. So the refs that a request names are held here until the call has ended and then
sent to the replica once more, nested in the argument of a call to its actor: Ray's answer says
whether the replica still holds them. The refs that a reply names are held by the replica until such
a call fetches them. Neither the caller nor the consumer waits for that.

On the transport's loop. Invariant: each ref is held here or by Ray's count from the moment it is
named until the replica has let go of it, or is gone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import ActorDiedError, RayTaskError

from serve_grpc._serve.lending import ask, replica_actor
from serve_grpc.config import LOGGER_NAME
from serve_grpc.payload import Segments
from serve_grpc.routing.peer import ReplicaFacts
from serve_grpc.threads import in_thread

__all__ = ["Borrowed", "Lender", "Loan"]

logger = logging.getLogger(LOGGER_NAME)

ASK_AGAIN_S = 1.0
"""Between two questions whether a call that was given up still runs. A request that was on its way
then has arrived by the second one."""
GONE = (ActorDiedError, ValueError, RuntimeError)
"""What asking ends with for good: the actor has died, has left, or Ray was shut down."""


class Borrowed(list[Any]):
    """Refs that a reply named; empty until they have been fetched.

    Attributes:
        fetched: Done when they are there, or cannot be had any more.
    """

    def __init__(self) -> None:
        super().__init__()
        # Of `concurrent.futures`, not asyncio: it is waited for on other loops and in threads.
        self.fetched: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.fetched.set_running_or_notify_cancel()  # who gives up waiting must not cancel it


@dataclass(slots=True)
class _Visit:
    """One sending of a call to a replica.

    Attributes:
        questions: How often the replica has to say that the call does not run there.
    """

    lender: Lender
    epoch: int
    call_id: int
    refs: Sequence[Any]
    questions: int = 2


class Loan:
    """The refs that a call's request names. Args: `refs`."""

    __slots__ = ("_taken_on", "_visits", "refs")

    def __init__(self, refs: Sequence[Any]) -> None:
        self.refs = refs
        self._taken_on: list[Any] = []
        self._visits: list[_Visit] = []

    def take_on(self, refs: Sequence[Any], lender: Lender, epoch: int, call_id: int) -> None:
        """Items of the call's inputs, which were sent under this name, name these."""
        last = self._visits[-1] if self._visits else None
        if last is None or (last.lender, last.epoch, last.call_id) != (lender, epoch, call_id):
            self.is_sent(lender, epoch, call_id)  # the request itself names none
        self._taken_on += refs

    def is_sent(self, lender: Lender, epoch: int, call_id: int) -> None:
        """The request was sent, under this name."""
        self._visits.append(_Visit(lender, epoch, call_id, self.refs))

    def came_back(self) -> None:
        """The last replica did not take it."""
        del self._visits[-1:]

    def settle(self, *, is_answered: bool) -> None:
        """The call has ended; with `is_answered` the last replica is known to be done with it."""
        # Once it has answered nobody need ask whether the call runs there. Else a request that was
        # under way when its call was given up may start after the first question.
        if is_answered and self._visits:
            self._visits[-1].questions = 1
        for visit in self._visits:
            if self._taken_on:
                visit.refs = (*visit.refs, *self._taken_on)
            visit.lender.settle(visit)
        self._visits.clear()


class Lender:
    """All that is lent to one replica and borrowed from it. Args: `facts`, of the replica."""

    def __init__(self, facts: ReplicaFacts) -> None:
        self._facts = facts
        self._actor: Any = None
        self._visits: list[_Visit] = []
        self._wanted: list[tuple[int, int, Borrowed]] = []
        self._exchanging: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Lender {len(self._visits)} calls to settle, {len(self._wanted)} replies to fetch>"

    def settle(self, visit: _Visit) -> None:
        """Let Ray know whether the replica still holds what a call lent to it; then let go."""
        self._visits.append(visit)
        self._start()

    def borrow(self, epoch: int, lent: Sequence[tuple[int, Segments | None]]) -> None:
        """Fetch the refs that replies named, by their numbers; they are put to the payloads."""
        for number, payload in lent:
            borrowed = Borrowed()
            if payload is not None:
                payload.refs = borrowed
            self._wanted.append((epoch, number, borrowed))
        self._start()

    def _start(self) -> None:
        # What comes while the actor is asked goes with the next question.
        if self._exchanging is None:
            self._exchanging = asyncio.get_running_loop().create_task(self._exchange())

    async def _exchange(self) -> None:
        try:
            while self._visits or self._wanted:
                try:
                    # One call of Ray for all that came meanwhile; each costs about a millisecond.
                    await self._exchange_all()
                except GONE as error:
                    # With the replica goes what it held and what it lent.
                    logger.debug("replica %s is gone: %r", self._facts.replica_id, error)
                    return
                except Exception as error:
                    logger.debug("%s will be asked again: %r", self._facts.replica_id, error)
                    await asyncio.sleep(ASK_AGAIN_S)
        finally:
            self._exchanging = None
            self._visits.clear()
            # However it ended, with the replica or with the loop: nobody waits for refs for ever.
            for _, _, borrowed in self._wanted:
                borrowed.fetched.set_result(None)
            self._wanted.clear()

    async def _exchange_all(self) -> None:
        """Ask the actor about all that waits by now."""
        facts = self._facts
        if self._actor is None:
            names = facts.replica_id, facts.deployment, facts.application
            # `ray.get_actor` blocks for a round trip to the GCS.
            self._actor = await in_thread(replica_actor, *names)
        # A snapshot; what is added while Ray is asked stays behind it in the lists.
        visits, wanted = tuple(self._visits), tuple(self._wanted)
        still_run: Sequence[bool] = [False] * len(visits)
        fetched: Sequence[Sequence[Any]] = [()] * len(wanted)
        try:
            still_run, fetched = await ask(
                self._actor,
                facts.replica_id,
                [(v.epoch, v.call_id) if v.questions > 1 else None for v in visits],
                [v.refs for v in visits],
                [(epoch, number) for epoch, number, _ in wanted],
            )
        except RayTaskError as error:
            # A replica of another version: it lends nothing, and Ray has counted what it holds.
            logger.debug("replica %s cannot answer: %r", facts.replica_id, error)
        # Only now: had `ask` raised, the same would be asked again.
        del self._visits[: len(visits)], self._wanted[: len(wanted)]
        for (_, _, borrowed), refs in zip(wanted, fetched, strict=True):
            borrowed.extend(refs)
            borrowed.fetched.set_result(None)
        loop = asyncio.get_running_loop()
        for visit, still_runs in zip(visits, still_run, strict=True):
            visit.questions -= not still_runs
            if visit.questions:
                loop.call_later(ASK_AGAIN_S, self.settle, visit)
