"""What is told of a run: sessions, load and waiting."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.fleet_simulation.replicas import SimulatedReplica

__all__ = ["Measured", "load_of"]


@dataclass
class Measured:
    """One run, after its warm-up.

    Attributes:
        scenario, policy: Names.
        waits_s: Of each call that ran: from when it was made until it had a slot, without the way.
        sessions: Of each replica, at several moments.
        loads: Share of its slots that were taken, of each replica.
        opened, closed: Sessions.
        rejected: How often a call was turned away.
        calls, failed: How many were made, and ended with an exception.
        waiting: Calls in lines at the end.
    """

    scenario: str
    waits_s: array[float]
    policy: str = ""
    sessions: list[list[int]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    rejected: int = 0
    calls: int = 0
    failed: int = 0
    waiting: int = 0

    def take(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Note what was added to totals."""
        for name, total in after.items():
            setattr(self, name, total - before[name])

    @property
    def mean_sessions(self) -> float:
        """Of a replica."""
        return _mean(n for look in self.sessions for n in look)

    @property
    def most_sessions(self) -> int:
        """Of the replica that had the most."""
        return max(n for look in self.sessions for n in look)

    @property
    def busiest(self) -> float:
        """Load of the busiest replica, of the mean."""
        return max(self.loads) / _mean(self.loads)

    def wait_ms(self, quantile: float) -> float:
        """So large a share of the calls waited no longer, in milliseconds."""
        waits = sorted(self.waits_s)
        return waits[int(quantile * (len(waits) - 1))] * 1000 if waits else 0.0

    @property
    def mean_wait_ms(self) -> float:
        """In milliseconds."""
        return _mean(self.waits_s) * 1000


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return sum(values) / len(values) if values else 0.0


def load_of(
    busy: Mapping[SimulatedReplica, float],
    lasted_s: float,
    slots: int,
    gone: Collection[SimulatedReplica],
) -> list[float]:
    """Of each replica that was there from the beginning to the end.

    Args:
        busy: Seconds of slots that were taken before.
        lasted_s: The measurement.
        slots: Of each replica.
        gone: Replicas that left.
    """
    return [
        (replica.settle() - before) / lasted_s / slots
        for replica, before in busy.items()
        if replica not in gone
    ]
