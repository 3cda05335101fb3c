"""Which sessions of a pool are looked at in a beat, so that idle ones cost next to nothing.

A session with calls, or with a question that is not answered, is looked at in each beat. An idle
one has its turn when it has been silent for long, and few have it in one beat: however many there
are, a process asks no more of them a second than `IDLE_LOOKS_PER_S`, the longest silent first. So
sessions that were opened together are soon asked at different times, and the more, the rarer each.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from operator import attrgetter

from serve_grpc.caller.connection import Connection

__all__ = ["Heartbeats"]

BEATS_PER_INTERVAL = 4
IDLE_LOOKS_PER_S = 20.0
"""Idle sessions that are looked at, and asked for life if they are due; each costs its process some
0.2 ms over gRPC. Up to 100 sessions, each has its turn every 5 s, as soon as it is due; of 1,000,
every 50 s. A replica ends a session after 5 minutes of silence, but no process has sessions enough
for that: 6,000."""

_due_first = attrgetter("look_s")


class Heartbeats:
    """Args: `interval_s`, of heartbeats of a session with calls, in seconds.

    Attributes:
        beat_s: Seconds from one beat to the next. Beats come faster than the interval: silence is
            noticed a quarter of it late at most.
    """

    def __init__(self, interval_s: float) -> None:
        self.beat_s = interval_s / BEATS_PER_INTERVAL
        self._most_idle = math.ceil(IDLE_LOOKS_PER_S * self.beat_s)

    def due(self, connections: Iterable[Connection], now_s: float) -> Sequence[Connection]:
        """Those that are to be looked at in this beat; `now_s` is on `time.monotonic`."""
        # All in one comprehension, for it runs over thousands, and most are neither.
        found = [c for c in connections if c.peer.in_flight or c.look_s <= now_s]
        if len(found) <= self._most_idle:
            return found
        pressing = [c for c in found if c.peer.in_flight or not c.look_s]
        idle = (c for c in found if not c.peer.in_flight and c.look_s)
        return [*pressing, *heapq.nsmallest(self._most_idle, idle, key=_due_first)]
