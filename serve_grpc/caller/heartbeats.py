"""Which sessions of a pool are looked at in a beat, so that idle ones cost next to nothing.

A session with calls, or with a question that is not answered, is looked at in each beat. An idle
one has its turn when it has been silent for long, and few have it in one beat: however many there
are, a process asks no more of them a second than `IDLE_LOOKS_PER_S`, the longest silent first. So
sessions that were opened together are soon asked at different times, and the more, the rarer each.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from operator import attrgetter

from serve_grpc.caller.connection import Connection

__all__ = ["Heartbeats"]

BEATS_PER_INTERVAL = 4
IDLE_LOOKS_PER_S = 5.0
"""Idle sessions that are looked at, and asked for life if they are due; over gRPC, a question and
its answer cost a process some 0.3 ms."""
LONGEST_IDLE_S = 120.0
"""About: of more than 600 sessions more are looked at, so that each has its turn. A replica ends a
session on which it has heard nothing for 5 minutes."""

_due_first = attrgetter("look_s")


class Heartbeats:
    """Args: `interval_s`, of heartbeats of a session with calls, in seconds.

    Attributes:
        beat_s: Seconds from one beat to the next. Beats come faster than the interval: silence is
            noticed a quarter of it late at most.
    """

    def __init__(self, interval_s: float) -> None:
        self.beat_s = interval_s / BEATS_PER_INTERVAL

    def due(self, connections: Collection[Connection], now_s: float) -> Sequence[Connection]:
        """Those that are to be looked at in this beat; `now_s` is on `time.monotonic`."""
        # All in one comprehension, for it runs over thousands, and most are neither.
        found = [c for c in connections if c.peer.in_flight or c.look_s <= now_s]
        looks_per_s = max(IDLE_LOOKS_PER_S, len(connections) / LONGEST_IDLE_S)
        most_idle = max(1, round(looks_per_s * self.beat_s))
        if len(found) <= most_idle:
            return found
        pressing = [c for c in found if c.peer.in_flight or not c.look_s]
        idle = (c for c in found if not c.peer.in_flight and c.look_s)
        return [*pressing, *heapq.nsmallest(most_idle, idle, key=_due_first)]
