"""What becomes of a replica where the user's code fails while it does not elsewhere.

It gets no calls for a while, then one at a time until one fails again, and longer pauses each time.
Lives on the loop of its connection. Invariant: a penalised peer either rests, with a timer running,
or may be probed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc.caller.complaints import Complaints
from serve_grpc.routing.peer import Peer
from serve_grpc.transport.mailbox import mailbox_of

__all__ = ["Penalty"]

REST_S = (1.0, 8.0)
"""First and longest pause."""


class Penalty:
    """Of one replica.

    Args:
        peer: Where it is noted.
        on_rested: Called when the peer may have a call again.
    """

    def __init__(self, peer: Peer, on_rested: Callable[[], None]) -> None:
        self._peer = peer
        self._on_rested = on_rested
        self._mailbox = mailbox_of(asyncio.get_running_loop())
        self._timer: asyncio.TimerHandle | None = None
        self._rests = 0
        self._complaints = Complaints()

    def on_outlier(self) -> None:
        """Nearly all calls fail on this replica, and on another one they do not."""
        peer = self._peer
        if self._timer is not None:
            if peer.penalised:
                return
            self._timer.cancel()  # of a rest from which it was pardoned
        if not peer.penalised:
            self._rests = 0
            self._complaints.warn(
                "replica %s fails nearly all of its calls and others do not; it gets hardly any "
                "calls until they succeed",
                peer.facts.replica_id,
            )
        first, longest = REST_S
        peer.penalise()
        self._timer = self._mailbox.call_later(min(longest, first * 2**self._rests), self._rested)
        self._rests += 1

    def _rested(self) -> None:
        self._timer = None
        self._peer.may_probe = self._peer.penalised
        self._on_rested()

    def close(self) -> None:
        """The replica is gone."""
        if self._timer is not None:
            self._timer.cancel()
