"""Which worker process measures which cases, and the environment it runs in.

Nothing of what the shell says about Ray Serve or serve_grpc gets through: what is measured are the
defaults, and the flags of the case. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.plan.plans import Plan
from bench.plan.ray_programs import KIND as RAY_PROGRAM
from bench.plan.sweeps import MAX_MESSAGE_BYTES
from bench.results.run import Case, Flags
from bench.workers import estimate

__all__ = ["ROOT", "SERVE_FLAGS", "Group", "environment", "groups", "seconds"]

ROOT = Path(__file__).resolve().parents[2]

LIMIT = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_MESSAGE_BYTES)}
SERVE_FLAGS: dict[Flags, dict[str, str]] = {
    "default": LIMIT,
    "throughput": {**LIMIT, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}
"""Serve's variables by set of flags. HTTP cases have their own, see `http/environment.py`."""
OF_THEIR_OWN = {
    "http": ("http", "bench.http.worker"),
    RAY_PROGRAM: ("ray", "bench.ray_programs.worker"),
}
"""Kinds of workload with a worker of their own, which sets Serve up as it needs it."""


@dataclass(frozen=True)
class Group:
    """Cases of one worker process.

    Attributes:
        name: For its log file and messages.
        module: What `python -m` runs; it speaks as `protocol.py` says.
        variables: What its environment has of Serve's.
    """

    name: str
    module: str
    variables: dict[str, str]
    cases: tuple[Case, ...]

    @property
    def start_s(self) -> float:
        """What starting Ray and Serve will take, roughly; once for each proxy if there is one."""
        starts = {(case.flags, case.workload.get("proxy")) for case in self.cases}
        return len(starts) * estimate.START_S


def groups(cases: Iterable[Case]) -> list[Group]:
    """One for each set of flags, and one for each kind in OF_THEIR_OWN."""
    cases = tuple(cases)
    found = []
    for flags, variables in SERVE_FLAGS.items():
        own = tuple(c for c in cases if c.flags == flags and c.workload["kind"] not in OF_THEIR_OWN)
        found.append(Group(flags, "bench.on_serve.worker", variables, own))
    for kind, (name, module) in OF_THEIR_OWN.items():
        of_kind = tuple(case for case in cases if case.workload["kind"] == kind)
        found.append(Group(name, module, {}, of_kind))
    return [group for group in found if group.cases]


def environment(inherited: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker with these variables of Serve's."""
    dropped = ("RAY_SERVE_", "SERVE_GRPC_", "RAY_ADDRESS")
    env = {name: value for name, value in inherited.items() if not name.startswith(dropped)}
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    env["PYTHONPATH"] = str(ROOT)  # replicas import `bench` too
    return {**env, **variables}


def seconds(plan: Plan) -> float:
    """How long a plan will take, roughly."""
    total = estimate.GROWTH_S if plan.has_growth else 0.0
    total += estimate.COSTS_S if plan.has_costs else 0.0
    total += estimate.DOORS_S if plan.has_doors else 0.0
    for group in groups(plan.cases):
        total += group.start_s
        total += sum(estimate.case_s(case, plan.rounds, plan.window_s) for case in group.cases)
    return total
