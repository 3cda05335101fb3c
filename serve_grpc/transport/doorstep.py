"""Peers that have not proved themselves: from how many is read at once, and for how long.

gRPC holds a message in memory until it is complete, so each stranger who is read from may cost a
whole message. Places are few; who finds none waits unread, the newest first in line, and while
somebody waits, a place is kept for `PATIENCE_S` only. A member proves itself in milliseconds, so
strangers who say nothing do not keep members out. Invariant: a visit ends once, by `leave` or by
the end of its call.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from serve_grpc.transport.ending import Ending

__all__ = ["HANDSHAKE_TIMEOUT_S", "Doorstep", "Visit"]

HANDSHAKE_TIMEOUT_S = 10.0
PATIENCE_S = 1.0
MAX_WAITING = 1024
HELD_BYTES = 256 * 1024 * 1024
"""What strangers may make the replica hold, all together."""
PLACES = (4, 256)
"""At least and at most, however large or small a message may be."""


class Visit:
    """One stranger; `leave` when it is none any more."""

    def __init__(self, doorstep: Doorstep, ending: Ending) -> None:
        self._doorstep = doorstep
        self._ending = ending
        self.since = 0.0
        """When it got its place, on the loop's clock."""
        self.has_place: asyncio.Future[None] | None = None
        loop = ending.task.get_loop()
        self._timeout = loop.call_later(HANDSHAKE_TIMEOUT_S, self.end)

    def end(self) -> None:
        """End the call."""
        self._ending.end("no proof of membership came in time")

    def leave(self) -> None:
        """Give the place up."""
        self._timeout.cancel()
        self._doorstep.remove(self)


class Doorstep:
    """Where the strangers of one server are. Lives on the server's loop.

    Args:
        max_message_bytes: Largest message that gRPC takes.
    """

    def __init__(self, max_message_bytes: int) -> None:
        fewest, most = PLACES
        self.places = max(fewest, min(most, HELD_BYTES // max_message_bytes))
        self._inside: OrderedDict[Visit, None] = OrderedDict()
        self._waiting: OrderedDict[Visit, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Doorstep {len(self._inside)} of {self.places}, {len(self._waiting)} waiting>"

    @property
    def strangers(self) -> int:
        """How many there are, those who wait too."""
        return len(self._inside) + len(self._waiting)

    async def enter(self, ending: Ending) -> Visit:
        """Return when the peer of a call may be read from."""
        visit = Visit(self, ending)
        if len(self._inside) < self.places:
            self._admit(visit)
            return visit
        visit.has_place = ending.task.get_loop().create_future()
        self._waiting[visit] = None
        if len(self._waiting) > MAX_WAITING:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.end()
        self._fill()
        try:
            await visit.has_place
        except asyncio.CancelledError:
            visit.leave()
            raise
        return visit

    def remove(self, visit: Visit) -> None:
        """Forget a visit."""
        self._waiting.pop(visit, None)
        self._inside.pop(visit, None)
        self._fill()

    def _admit(self, visit: Visit) -> None:
        visit.since = asyncio.get_running_loop().time()
        self._inside[visit] = None

    def _fill(self) -> None:
        """Give places to those who wait, that of the oldest too if it had it for long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            if len(self._inside) >= self.places:
                oldest = next(iter(self._inside))
                left_s = oldest.since + PATIENCE_S - loop.time()
                if left_s > 0:
                    self._timer = loop.call_later(left_s, self._fill)
                    return
                del self._inside[oldest]
                oldest.end()
            visit, _ = self._waiting.popitem()
            assert visit.has_place is not None
            if not visit.has_place.done():
                self._admit(visit)
                visit.has_place.set_result(None)
