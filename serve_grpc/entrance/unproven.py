"""Peers that have not proved themselves: from how many is read at once, and for how long.

A carrier holds a message in memory until it is complete, so each unproven peer that is read from
may cost a whole message. Only a few are read from; the others wait unread, the newest first in
line, and while somebody waits, a peer is read from for `PATIENCE_S` only. A member of the cluster
proves itself in milliseconds, so peers that say nothing do not keep members out. Invariant: a peer
is counted from `enter` until `leave`, or until it is cut off for another one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

__all__ = ["HANDSHAKE_TIMEOUT_S", "Abortable", "UnprovenPeer", "UnprovenPeers"]

HANDSHAKE_TIMEOUT_S = 10.0
"""For all of a peer's handshake, the time in line included."""
PATIENCE_S = 1.0
"""So long at least a peer is read from; a member needs milliseconds."""
MAX_WAITING = 1024
"""At least so many may wait. Each costs a task and an open stream, though nothing of it is read."""
HELD_BYTES = 256 * 1024 * 1024
"""What unproven peers may make the replica hold, all together."""
MAX_READING_RANGE = (4, 256)
"""At least and at most, however large or small a message may be."""


class Abortable(Protocol):
    """The service of one peer, whatever carries it, as something that can be ended."""

    def abort(self, reason: str) -> None:
        """Stop serving it, and cancel the task that does; the peer is told why."""


class UnprovenPeer:
    """One peer, until `leave`. Lives on the loop it is made on."""

    def __init__(self, unproven: UnprovenPeers, peer: Abortable) -> None:
        self._unproven = unproven
        self._peer = peer
        self.is_unproven = True
        self.since = 0.0
        """From when on it was read from, on the loop's clock."""
        self.may_read: asyncio.Future[None] | None = None
        """Done when it may be read from, if it had to wait."""
        self._timeout = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self.cut_off)

    def cut_off(self) -> None:
        """End its service: no proof came in time, or its place is wanted."""
        self._peer.abort("no proof of membership came in time")

    def leave(self) -> None:
        """It has proved itself, or is gone; nothing happens the second time."""
        if self.is_unproven:
            self.is_unproven = False
            self._timeout.cancel()
            self._unproven.remove(self)


class UnprovenPeers:
    """Those of one replica, whichever carrier they came by. Lives on the replica's loop.

    Args:
        max_message_bytes: Largest message that a carrier takes.
        max_members: How many members may come at once, none of whom is to be turned away.

    Attributes:
        max_reading: From how many is read at once.
    """

    def __init__(self, max_message_bytes: int, max_members: int = 0) -> None:
        fewest, most = MAX_READING_RANGE
        # A carrier may hold a whole message of each that is read from.
        self.max_reading = max(fewest, min(most, HELD_BYTES // max_message_bytes))
        self._max_waiting = max(MAX_WAITING, max_members)
        self._reading: OrderedDict[UnprovenPeer, None] = OrderedDict()
        self._waiting: OrderedDict[UnprovenPeer, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        reading = f"{len(self._reading)} of {self.max_reading} read from"
        return f"<UnprovenPeers {reading}, {len(self._waiting)} waiting>"

    @property
    def count(self) -> int:
        """How many there are, those who wait too."""
        return len(self._reading) + len(self._waiting)

    async def enter(self, peer: Abortable) -> UnprovenPeer:
        """Return when a peer may be read from; `peer` cuts it off if it takes too long."""
        entering = UnprovenPeer(self, peer)
        if len(self._reading) < self.max_reading:
            self._admit(entering)
            return entering
        entering.may_read = asyncio.get_running_loop().create_future()
        self._waiting[entering] = None
        # The oldest: the newest is served first, so this one had the least hope.
        if len(self._waiting) > self._max_waiting:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.cut_off()
        self._fill()
        try:
            await entering.may_read
        except asyncio.CancelledError:
            # It may have been let in within this very turn; then its place is free again.
            entering.leave()
            raise
        return entering

    def remove(self, peer: UnprovenPeer) -> None:
        """Forget one; only `UnprovenPeer.leave`."""
        self._waiting.pop(peer, None)
        self._reading.pop(peer, None)
        self._fill()

    def _admit(self, peer: UnprovenPeer) -> None:
        peer.since = asyncio.get_running_loop().time()
        self._reading[peer] = None

    def _fill(self) -> None:
        """Read from those who wait, in the place of the oldest too if that had long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            if len(self._reading) >= self.max_reading:
                oldest = next(iter(self._reading))
                left_s = oldest.since + PATIENCE_S - loop.time()
                if left_s > 0:
                    self._timer = loop.call_later(left_s, self._fill)
                    return
                del self._reading[oldest]
                oldest.cut_off()
            # The newest first: thousands of silent peers that came before do not keep a member out.
            # It was let in after 0.8 s beside 2,000 of them (docs/decisions/0014).
            newest, _ = self._waiting.popitem()
            assert newest.may_read is not None
            # Done: its task was cancelled while it waited, and has not come to `leave` yet.
            if not newest.may_read.done():
                self._admit(newest)
                newest.may_read.set_result(None)
