"""The full plan and the quick one: which cases, how many rounds, how long windows are.

The cases stand in `sweeps.py`, `http.py` and `ray_programs.py`. Pure: nothing here imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bench.plan.contenders import BY_REFERENCE, OURS, ours, serves
from bench.plan.http import http_cases
from bench.plan.ray_programs import ray_cases
from bench.plan.sweeps import all_sweeps, memory
from bench.plan.targets import narrowed
from bench.results.run import Case

__all__ = ["Plan", "full_plan", "quick_plan"]

QUICK = (
    "serializers/*/100",
    "serializers/throughput/1",
    "payload/throughput/bytes-echo-1MB-1",
    "payload/throughput/numpy-echo-10MB-1",
    "payload/throughput/numpy-changed-10MB-1",
    "payload/throughput/dataframe-echo-10MB-1",
    "beside/*",
    "streams/throughput/async-100",
    "saturated/throughput/100",
    "sync/default/1",
)
"""Cases of the quick plan: the key targets, and every kind of workload."""
WITHOUT_REFERENCE = ("streams/*", "saturated/*")
"""Of these, the ones where Ray by reference is the slowest by far: waiting for its calls to end
would take a fifth of the time."""


@dataclass(frozen=True)
class Plan:
    """What one command measures.

    Attributes:
        cases: In the order in which they are reported.
        rounds: How often each contender of a case has its turn.
        window_s: Counted time of a window, in seconds.
        has_growth: Whether the growth measurements belong to it.
        has_costs: Whether the micro-benchmarks of the parts of a call do.
        has_doors: Whether what proofs and TLS cost does.
        is_quick: Whether it is the short plan.
        on_demand: Cases that take minutes, and are there only if a pattern begins with their sweep.
    """

    cases: tuple[Case, ...]
    rounds: int
    window_s: float
    has_growth: bool
    has_costs: bool
    is_quick: bool
    has_doors: bool = False
    on_demand: tuple[Case, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to measure."""
        return not (self.cases or self.has_growth or self.has_costs or self.has_doors)

    def only(self, patterns: Iterable[str]) -> Plan:
        """The part whose cases' ids are, or else contain, one of `patterns`.

        Patterns may have wildcards; "growth" stands for the growth measurements, "costs" for the
        micro-benchmarks, "doors" for what proofs and TLS cost. A case on demand is taken for a
        pattern that begins with the name of its sweep, "memory" for one.
        """

        patterns = tuple(patterns)
        asked_for = tuple(c for c in self.on_demand if any(p.startswith(c.sweep) for p in patterns))
        cases = (*self.cases, *asked_for)
        ids = {case.id for case in cases}

        def is_wanted(name: str) -> bool:
            return any(
                name == pattern if pattern in ids else fnmatchcase(name, f"*{pattern}*")
                for pattern in patterns
            )

        return replace(
            self,
            cases=tuple(case for case in cases if is_wanted(case.id)),
            has_growth=self.has_growth and is_wanted("growth"),
            has_costs=self.has_costs and is_wanted("costs"),
            has_doors=self.has_doors and is_wanted("doors"),
        )


def full_plan() -> Plan:
    """Everything."""
    cases = (*all_sweeps(), *http_cases(), *ray_cases())
    return Plan(
        cases,
        rounds=5,
        window_s=0.25,
        has_growth=True,
        has_costs=True,
        has_doors=True,
        is_quick=False,
        on_demand=tuple(memory()),
    )


def quick_plan() -> Plan:
    """Key cases in fewer rounds and shorter windows, without some of the contenders."""
    # Of Serve's serializers, "pickle" and "orjson" are nearly always the best one.
    left_out = {*ours(), *serves("cloudpickle", "msgpack")} - {OURS}
    cases = []
    for case in full_plan().cases:
        if any(fnmatchcase(case.id, pattern) for pattern in QUICK):
            is_slow = any(fnmatchcase(case.id, pattern) for pattern in WITHOUT_REFERENCE)
            absent = left_out | {BY_REFERENCE} if is_slow else left_out
            contenders = tuple(name for name in case.contenders if name not in absent)
            targets = narrowed(case.targets, contenders)
            cases.append(replace(case, contenders=contenders, targets=targets))
    return Plan(
        tuple(cases), rounds=3, window_s=0.2, has_growth=False, has_costs=False, is_quick=True
    )
