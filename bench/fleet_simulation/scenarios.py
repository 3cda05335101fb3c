"""How hard a fleet's life is, and the lives that are measured.

A call's work is exponentially distributed; calls come at random times (Poisson), or in bursts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["SCENARIOS", "Scenario"]


@dataclass(frozen=True)
class Scenario:
    """One life.

    Attributes:
        name: As the table has it.
        callers, replicas: How many.
        slots: `max_ongoing_requests`.
        work_s: Mean time of a handler, in seconds.
        utilisation: Share of all slots that is wanted.
        calls: About how many are made.
        first_share: Of the first caller in all calls; the others share the rest. 0: as any other.
        bursts: Whether each caller is busy for a tenth of the time, with eleven times the calls of
            the rest.
        replaced: How many replicas leave one after the other, each with one that comes.
        leaves: How many leave at once in the middle.
        slow: How many replicas take five times as long.
        failing: How many fail all of their calls within a millisecond.
    """

    name: str
    callers: int = 1000
    replicas: int = 1000
    slots: int = 5
    work_s: float = 0.05
    utilisation: float = 0.7
    calls: int = 1_000_000
    first_share: float = 0.0
    bursts: bool = False
    replaced: int = 0
    leaves: int = 0
    slow: int = 0
    failing: int = 0

    @property
    def calls_per_s(self) -> float:
        """Of all callers."""
        return self.utilisation * self.replicas * self.slots / self.work_s

    @property
    def lasts_s(self) -> float:
        """Until all calls are made."""
        return self.calls / self.calls_per_s

    def rate(self, caller: int) -> float:
        """Calls per second of one caller."""
        if not self.first_share:
            return self.calls_per_s / self.callers
        share = self.first_share if caller == 0 else (1 - self.first_share) / (self.callers - 1)
        return self.calls_per_s * share

    def smaller(self, factor: int, calls: int) -> Scenario:
        """The same with so many times fewer callers and replicas."""
        fewer = {
            name: -(-getattr(self, name) // factor)
            for name in ("callers", "replicas", "replaced", "slow", "failing")
        }
        return replace(self, calls=calls, **fewer)


SCENARIOS = (
    Scenario("even"),
    Scenario("1 slot", slots=1, work_s=0.01),
    Scenario("100 slots", slots=100, work_s=1.0),
    Scenario("half from one caller", first_share=0.5),
    Scenario("bursts", bursts=True),
    Scenario("100 callers", callers=100),
    Scenario("10 callers", callers=10),
    Scenario("rolling update", replaced=200),
    Scenario("one leaves", leaves=1),
    Scenario("slow replicas", slow=10),
    Scenario("failing replica", failing=1),
    Scenario("90 % busy", utilisation=0.9),
    Scenario("overload", utilisation=1.1, calls=200_000),
)
