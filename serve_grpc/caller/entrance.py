"""Lets calls in, or refuses them: each is judged once, in the order of `remote()`.

As in Serve, a call is judged before its arguments are waited for, and a call that was made before
the deployment's configuration is known is judged when it comes; until then it is not among Serve's
queued requests. On the router's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from ray.serve.exceptions import RequestCancelledError

from serve_grpc._serve.routers import RouterAccess
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.tally import Tally
from serve_grpc.transport.mailbox import mailbox_of

__all__ = ["Arguments", "Entrance", "Inside"]

NEWS_APART_S = 0.1
"""The configuration and the replicas of a deployment come in one message of Serve's, one after the
other; a deployment of which no replicas are known so long after the configuration has none."""

Arguments = Callable[[], Awaitable[None]]
"""Waits for what a call's arguments are the results of, and gives it its payload or its error."""


class Inside(Protocol):
    """The router, behind the entrance. `is_native`: whether Serve's own places the calls."""

    is_native: bool

    def start_natively(self, call: Call) -> None:
        """Leave a call to Serve's own router."""

    def pick_for_new(self, call: Call) -> Connection | None:
        """A connection that takes it now, while nobody waits before it."""

    def room_to_come(self) -> int:
        """How many calls will have room once sessions are open that are being opened."""

    def count(self, call: Call, *, is_refused: bool = False) -> None:
        """Count it as made, and as let in."""

    def route(self, call: Call, connection: Connection | None) -> None:
        """Send it, or let it wait."""

    def watch_serve(self) -> None:
        """See whether Serve is still there while calls wait for it."""


class Entrance:
    """Of one router.

    Args:
        access: To Serve's router, which has the limit.
        tally: Where it is counted who waits.
        inside: Who takes the calls.
    """

    def __init__(self, access: RouterAccess, tally: Tally, inside: Inside) -> None:
        self._access = access
        self._tally = tally
        self._inside = inside
        self._early: dict[Call, Arguments | None] = {}
        self._is_open = False
        self._opening: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._early)

    def __repr__(self) -> str:
        return "<Entrance open>" if self._is_open else f"<Entrance closed, {len(self)} wait>"

    def enter(self, call: Call, arguments: Arguments | None) -> None:
        """Let a new call in or refuse it, as soon as that can be said.

        Args:
            call: With its payload, unless `arguments` gives it one.
            arguments: Waits for the call's arguments; None if there is nothing to wait for.
        """
        inside = self._inside
        if not self._is_open and not self._access.is_unavailable:
            self._early[call] = arguments
            self._tally.waiting += 1
            inside.watch_serve()
        elif inside.is_native:
            inside.start_natively(call)
        else:
            connection = inside.pick_for_new(call)
            refusal = self._access.refusal(
                is_full=connection is None, room_to_come=inside.room_to_come
            )
            if refusal is not None:
                inside.count(call, is_refused=True)
                call.fail(refusal)
            elif arguments is None:
                inside.route(call, connection)
            else:
                call.place = self._access.loop.create_task(self._resolve(call, arguments))

    async def _resolve(self, call: Call, arguments: Arguments) -> None:
        started_s = time.monotonic()
        try:
            await arguments()
        except asyncio.CancelledError:
            # Whoever gives the call up has ended it by now. Else an argument was cancelled.
            call.fail(RequestCancelledError(call.fields.request_id))
            raise
        except Exception as error:
            call.fail(error)
        if call.done:
            return
        call.place = None
        self._tally.resolutions_ms.append((time.monotonic() - started_s) * 1000)
        inside = self._inside
        if inside.is_native:
            inside.start_natively(call)
        else:
            inside.route(call, inside.pick_for_new(call))

    # ------------------------------------------------------------ who waits for the configuration

    def on_configured(self, *, has_replicas: bool) -> None:
        """The configuration is known, and perhaps the replicas."""
        if self._is_open:
            return
        if has_replicas or self._inside.is_native:
            self._open()
        elif self._opening is None:
            self._opening = mailbox_of(self._access.loop).call_later(NEWS_APART_S, self._open)

    def _open(self) -> None:
        self._is_open = True
        self.close()
        for call, arguments in self.take_all():
            self.enter(call, arguments)

    def take_all(self) -> list[tuple[Call, Arguments | None]]:
        """Those that came before the configuration, in order."""
        early = list(self._early.items())
        self._early.clear()
        self._tally.waiting -= len(early)
        return early

    def give_up(self, call: Call) -> None:
        """The call waits no longer; nothing happens for one that does not."""
        if call in self._early:
            del self._early[call]
            self._tally.waiting -= 1

    def close(self) -> None:
        """Leave no timer."""
        if self._opening is not None:
            self._opening.cancel()
