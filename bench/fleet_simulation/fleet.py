"""A life of a fleet: its callers, its replicas, and what becomes of the calls."""

from __future__ import annotations

import gc
import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.fleet_simulation.callers import SimulatedCaller, TimedDelivery
from bench.fleet_simulation.clock import Clock
from bench.fleet_simulation.measured import Measured, load_of
from bench.fleet_simulation.policies import POLICIES
from bench.fleet_simulation.replicas import SimulatedReplica
from bench.fleet_simulation.scenarios import Scenario
from bench.fleet_simulation.sessions import HOP_S
from serve_grpc.routing.subset import SHARE

__all__ = ["SUBSET_SIZE", "simulate"]

SUBSET_SIZE = 24
WARM_UP = 0.25
"""Share of the calls before the measurement begins."""
LOOKS = 20
NEWS_S = 0.5
"""From a replica's end until callers hear of it."""


class Fleet:
    """Everything of one run."""

    def __init__(
        self, scenario: Scenario, policy: str, size: int, clock: Clock, rng: random.Random
    ) -> None:
        self.scenario, self.size, self.clock, self.rng = scenario, size, clock, rng
        self.replicas: dict[str, SimulatedReplica] = {}
        self.gone: set[SimulatedReplica] = set()
        self.number = 0
        self.waits_s = array("d")
        self.is_measuring = False
        self.ended = self.failed = self.made = 0
        for _ in range(scenario.replicas):
            self.join()
        for replica in list(self.replicas.values())[: scenario.slow]:
            replica.slowness = 5.0
        for replica in list(self.replicas.values())[: scenario.failing]:
            replica.fails = True
        self.callers = [self._caller(number, policy) for number in range(scenario.callers)]

    def _caller(self, number: int, policy: str) -> SimulatedCaller:
        choose, scenario, size = POLICIES[policy], self.scenario, self.size
        # As ours would, if it knew its load beforehand.
        load = scenario.rate(number) * scenario.work_s / scenario.slots
        wanted = max(size, int(SHARE * load))
        chosen: Any = None
        if choose is not None:

            def chosen(ids: list[str]) -> Any:
                return choose(ids, number, scenario.callers, wanted)

        return SimulatedCaller(
            number,
            self.clock,
            self.replicas,
            subset_size=size,
            policy=chosen,
            on_end=self._on_end,
        )

    # ------------------------------------------------------------ calls

    def _on_start(self, session: Any, call_id: int) -> None:
        delivery: TimedDelivery = session.calls[call_id]
        if self.is_measuring and not delivery.ran_s:
            # Beyond the way there, which every call has to go.
            self.waits_s.append(max(0.0, self.clock.now_s - delivery.made_s - HOP_S))
        delivery.ran_s = self.clock.now_s

    def _on_end(self, delivery: TimedDelivery, outcome: Any) -> None:
        self.ended += 1
        self.failed += not outcome.is_ok

    def _arrivals(self, caller: SimulatedCaller, rate: float) -> None:
        """Calls one after the other, at random."""
        clock, gap = self.clock, self.rng.expovariate

        def arrive() -> None:
            clock.at(gap(rate), arrive)
            self.made += 1
            caller.call()

        clock.at(gap(rate), arrive)

    def _bursts(self, caller: SimulatedCaller, rate: float) -> None:
        """Half of the calls evenly, the other half in a tenth of the time."""
        clock, gap = self.clock, self.rng.expovariate
        self._arrivals(caller, rate / 2)

        def burst() -> None:
            ends_s = clock.now_s + gap(1 / 0.2)
            clock.at(gap(1 / 2.0), burst)
            arrive(ends_s)

        def arrive(ends_s: float) -> None:
            if clock.now_s < ends_s:
                clock.at(gap(rate * 5), arrive, ends_s)
                self.made += 1
                caller.call()

        clock.at(gap(1 / 2.0), burst)

    # ------------------------------------------------------------ replicas come and go

    def join(self) -> SimulatedReplica:
        """One more, of which nobody knows yet."""
        scenario = self.scenario
        work_s, draw = scenario.work_s, self.rng.expovariate
        replica = SimulatedReplica(
            f"replica-{self.number}",
            self.clock,
            scenario.slots,
            lambda: draw(1 / work_s),
            self._on_start,
        )
        self.number += 1
        self.replicas[replica.facts.replica_id] = replica
        return replica

    def _leave(self, *, is_replaced: bool) -> None:
        """One leaves; the callers hear of it a moment before."""
        listed = [one for one, replica in self.replicas.items() if replica not in self.gone]
        name = self.rng.choice(listed)
        came = [self.join().facts] if is_replaced else []
        replica = self.replicas[name]
        for caller in self.callers:
            caller.update(came, [name])
        self.gone.add(replica)
        self.clock.at(NEWS_S, self.replicas.pop, name)

    # ------------------------------------------------------------ the whole

    def live(self) -> Measured:
        """From the first call to the last."""
        scenario = self.scenario
        facts = [replica.facts for replica in self.replicas.values()]
        for number, caller in enumerate(self.callers):
            caller.update(facts, [])
            come = self._bursts if scenario.bursts else self._arrivals
            come(caller, scenario.rate(number))
        begins_s = self.clock.now_s + scenario.lasts_s * WARM_UP
        ends_s = self.clock.now_s + scenario.lasts_s
        self.clock.run(begins_s)
        self.is_measuring = True
        measured = Measured(scenario.name, self.waits_s)
        before = self._totals()
        busy = {replica: replica.settle() for replica in self.replicas.values()}
        for _ in range(scenario.leaves):
            self._leave(is_replaced=False)
        for number in range(scenario.replaced):
            after_s = (ends_s - begins_s) * (number + 1) / (scenario.replaced + 1)
            self.clock.call_later(after_s, lambda: self._leave(is_replaced=True))
        for look in range(LOOKS):
            self.clock.run(begins_s + (ends_s - begins_s) * (look + 1) / LOOKS)
            measured.sessions.append([len(r.sessions) for r in self.replicas.values()])
        measured.loads = load_of(busy, ends_s - begins_s, scenario.slots, self.gone)
        measured.take(before, self._totals())
        measured.waiting = sum(len(caller.line) for caller in self.callers)
        return measured

    def _totals(self) -> dict[str, int]:
        pools = [caller.pool for caller in self.callers]
        return {
            "opened": sum(pool.opened for pool in pools),
            "closed": sum(pool.closed for pool in pools),
            "rejected": sum(pool.rejected for pool in pools),
            "calls": self.made,
            "failed": self.failed,
        }


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of objects live to the end, and looking at them again and again takes minutes."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def simulate(
    scenario: Scenario, policy: str, *, seed: int = 1, size: int = SUBSET_SIZE
) -> Measured:
    """One life of a fleet.

    Args:
        scenario: What happens.
        policy: Of `POLICIES`.
        seed: Of chance.
        size: The least replicas in a subset.
    """
    rng = random.Random(seed)
    clock = Clock()
    with _no_collection(), clock.running(rng):
        measured = Fleet(scenario, policy, size, clock, rng).live()
    measured.policy = policy
    return measured
