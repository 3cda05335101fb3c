"""Lets calls in, or refuses them: each is judged once, in the order of `remote()`.

As in Serve, a call is judged before its arguments are waited for, and a call that was made before
the deployment's configuration is known is judged when it comes; until then it is not among Serve's
queued requests. On the router's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from serve_grpc._serve.routers import RouterAdapter
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.events import note
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.outcomes import Cancelled, Outcome, Raised
from serve_grpc.caller.tally import Tally
from serve_grpc.debugging import is_debugged
from serve_grpc.mailbox import mailbox_of

__all__ = ["Admission", "Arguments", "Inside"]

NEWS_APART_S = 0.1
"""The configuration and the replicas of a deployment come in one message of Serve's, one after the
other; a deployment of which no replicas are known so long after the configuration has none."""

Arguments = Callable[[], Awaitable[None]]
"""Waits for what a call's arguments are the results of, and gives it its payload or its error."""


class Inside(Protocol):
    """What is behind the entrance, for one call: its chooser, which is the line or `Bound`.

    Attributes:
        feed: What is known of the deployment.
    """

    @property
    def feed(self) -> Feed:
        """As above."""

    def leave_to_serve(self, delivery: Delivery) -> None:
        """Leave a call to Serve's own router."""

    def pick_for_new(self, delivery: Delivery) -> Connection | None:
        """A connection that takes it now, while nobody waits before it."""

    def refusal(self, delivery: Delivery, *, is_full: bool) -> Outcome | None:
        """Why it may not even wait; asked where there is no connection that takes it now."""

    def count(self, delivery: Delivery, *, is_refused: bool = False) -> None:
        """Count it as made, and as let in."""

    def route(self, delivery: Delivery, connection: Connection | None) -> None:
        """Send it, or let it wait."""

    def watch_serve(self) -> None:
        """See whether Serve is still there while calls wait for it."""


class _Resolving:
    """The stage of a call that was let in, while its arguments are waited for.

    Args:
        task: Waits for them, and ends the call or sends it on.
    """

    may_have_started = False

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def withdraw(self, delivery: Delivery) -> None:
        """The call is ending: unless that task ends it, nobody wants the arguments."""
        if asyncio.current_task() is not self._task:
            self._task.cancel()

    def grant(self, items: int, bytes_: int) -> None:
        """Nothing came of it yet."""

    def describe(self) -> str:
        """Where the call is."""
        return "waiting for its arguments"


class Admission:
    """Of one router; the stage of calls that wait for the configuration.

    Args:
        adapter: To Serve's router, which has the limit.
        tally: Where it is counted who waits.
        inside: Who takes the calls that may go to any replica.
    """

    may_have_started = False

    def __init__(self, adapter: RouterAdapter, tally: Tally, inside: Inside) -> None:
        self._adapter = adapter
        self._tally = tally
        self._inside = inside
        self._early: dict[Delivery, Arguments | None] = {}
        self._is_open = False
        self._opening: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._early)

    def __repr__(self) -> str:
        return "<Admission open>" if self._is_open else f"<Admission closed, {len(self)} wait>"

    def enter(self, delivery: Delivery, arguments: Arguments | None) -> None:
        """Let a new call in or refuse it, as soon as that can be said.

        Args:
            delivery: Of a call with its payload, unless `arguments` gives it one.
            arguments: Waits for the call's arguments; None if there is nothing to wait for.
        """
        inside: Any = delivery.chooser
        if not self._is_open and not self._adapter.is_unavailable:
            delivery.stage = self
            self._early[delivery] = arguments
            self._tally.waiting += 1
            if is_debugged():
                note("request %s: waits for the configuration", delivery.request_id)
            inside.watch_serve()
        elif inside.feed.is_serve_routed:
            inside.leave_to_serve(delivery)
        else:
            connection = inside.pick_for_new(delivery)
            if connection is None or self._adapter.is_unavailable:
                refusal = inside.refusal(delivery, is_full=connection is None)
            else:
                refusal = None  # who finds room is let in; asked here, for each call comes by
            if refusal is not None:
                inside.count(delivery, is_refused=True)
                delivery.end(refusal)
            elif arguments is None:
                inside.route(delivery, connection)
            else:
                task = self._adapter.loop.create_task(self._resolve(delivery, arguments))
                delivery.stage = _Resolving(task)
                if is_debugged():
                    note("request %s: waits for its arguments", delivery.request_id)

    async def _resolve(self, delivery: Delivery, arguments: Arguments) -> None:
        started_s = time.monotonic()
        try:
            await arguments()
        except asyncio.CancelledError:
            # Whoever gives the call up has ended it by now. Else an argument was cancelled.
            delivery.end(Cancelled())
            raise
        except Exception as error:
            delivery.end(Raised(error))
        if delivery.done:
            return
        delivery.stage = None
        self._tally.resolutions_ms.append((time.monotonic() - started_s) * 1000)
        inside: Any = delivery.chooser
        if inside.feed.is_serve_routed:
            inside.leave_to_serve(delivery)
        else:
            inside.route(delivery, inside.pick_for_new(delivery))

    # ------------------------------------------------------------ who waits for the configuration

    def on_configured(self, *, has_replicas: bool) -> None:
        """The configuration is known, and perhaps the replicas."""
        if self._is_open:
            return
        if has_replicas or self._inside.feed.is_serve_routed:
            self._open()
        elif self._opening is None:
            self._opening = mailbox_of(self._adapter.loop).call_later(NEWS_APART_S, self._open)

    def _open(self) -> None:
        self._is_open = True
        self.close()
        for delivery, arguments in self._take_all():
            self.enter(delivery, arguments)

    def take_early(self) -> list[Delivery]:
        """Those that came before the configuration, in order; they wait here no longer."""
        return [delivery for delivery, _ in self._take_all()]

    def _take_all(self) -> list[tuple[Delivery, Arguments | None]]:
        early = list(self._early.items())
        for delivery, _ in early:
            delivery.stage = None
            self.withdraw(delivery)
        return early

    def withdraw(self, delivery: Delivery) -> None:
        """The call waits here no longer."""
        del self._early[delivery]
        self._tally.waiting -= 1

    def grant(self, items: int, bytes_: int) -> None:
        """Nothing came of a call that waits."""

    def describe(self) -> str:
        """Where the call is."""
        return "waiting for the configuration"

    def close(self) -> None:
        """Leave no timer."""
        if self._opening is not None:
            self._opening.cancel()
