"""What a run of the benchmark found, and its JSON form.

A run has cases; a case is one workload under one set of flags, measured over several contenders in
turn, round by round; a sample is one contender's window in one round. Nothing here is computed:
medians and ratios are `stats.py`'s.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["SCHEMA", "Case", "CaseResult", "Flags", "Run", "Sample", "Target"]

SCHEMA = 1

Flags = Literal["default", "throughput"]


@dataclass(frozen=True)
class Target:
    """What a case has to show.

    Attributes:
        metric: Name of a field of `Sample`.
        contender: Whose number it is.
        against: With whose it is compared: the best of these by the metric's median.
        at_least, at_most: Bound of the ratio `contender / against`, whichever is given.
        title: One line for the table of targets.
        is_absolute: Whether the bound is of the contender's number itself; `against` is empty then.
    """

    metric: str
    contender: str
    against: tuple[str, ...]
    title: str
    at_least: float | None = None
    at_most: float | None = None
    is_absolute: bool = False


@dataclass(frozen=True)
class Case:
    """One point of a sweep.

    Attributes:
        id: Unique and stable from run to run: "payload/throughput/100B/100".
        sweep: Which sweep it belongs to: one section, and one plot where it has an axis.
        flags: Serve's flags: its defaults, or RAY_SERVE_THROUGHPUT_OPTIMIZED=1.
        axis: What the sweep varies: "payload", "in flight", ... ; "" for a lone case.
        x: This case's place on the axis.
        workload: What is done, in the runner's words; see `plan/sweeps.py`.
        contenders: Names, in the order in which a round measures them.
        targets: What it has to show.
    """

    id: str
    sweep: str
    flags: Flags
    axis: str
    x: float
    workload: dict[str, Any]
    contenders: tuple[str, ...]
    targets: tuple[Target, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Case:
        """Read what `dataclasses.asdict` and JSON made of a case."""
        targets = (
            Target(**{**target, "against": tuple(target["against"])}) for target in data["targets"]
        )
        return cls(**{**data, "contenders": tuple(data["contenders"]), "targets": tuple(targets)})


@dataclass(frozen=True)
class Sample:
    """One window of one contender. None is "not applicable", not zero.

    Attributes:
        contender: Who was measured.
        round: In which round, from 0; samples of one round were measured one after another.
        calls_per_s: Calls (or HTTP requests) that ended in the window, per second.
        p50_ms, p99_ms: Latency of a call; of a whole stream for streams.
        tokens_per_s: Items of streams that arrived, per second.
        first_token_p50_ms: From the call to its first item.
        caller_cpu_us, callee_cpu_us: CPU time of that process, per call, in microseconds.
        fairness: With several callers: calls of the slowest over calls of the fastest, 0 to 1.
        large_per_s: Large calls that ended beside those that are counted, per second.
        memory_before_mib, memory_most_mib: Of caller and callee together: before the window, and
            the most there was in it.
        memory_left: What they had in the end, after idle time, over what they had before.
        calls: How many calls the percentiles rest on.
        carrier: What carried the sessions of serve_grpc, as its statistics told: "local" or "grpc";
            empty for all others.
        error: Why there is no number; they are all None then.
    """

    contender: str
    round: int
    calls_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    tokens_per_s: float | None = None
    first_token_p50_ms: float | None = None
    caller_cpu_us: float | None = None
    callee_cpu_us: float | None = None
    fairness: float | None = None
    large_per_s: float | None = None
    memory_before_mib: float | None = None
    memory_most_mib: float | None = None
    memory_left: float | None = None
    calls: int = 0
    carrier: str = ""
    error: str | None = None


@dataclass
class CaseResult:
    """A case and what was measured of it."""

    case: Case
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Run:
    """Everything one command measured.

    Attributes:
        machine: "cpu", "cores", "memory_gib", "kernel", "load_before", ...
        versions: "python", "ray", "grpcio", "serve_grpc", ...
        commit: Of the measured code, with "+dirty" if the tree differs from it.
        command: What was typed.
        started: ISO 8601, UTC.
        seconds: How long it took.
        is_quick: Whether it was the short plan.
        cases: In the plan's order.
        growth: Rows of the growth measurements: name, x, value, unit. Those with a "part" and a
            "side" beside are what the parts of a call cost, see `costs.py`; those with a
            "door", what proofs and TLS cost, see `doors.py`.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    command: str
    started: str
    seconds: float
    is_quick: bool
    cases: list[CaseResult]
    growth: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1)
        path.write_text(text + "\n")

    def and_then(self, later: Run) -> Run:
        """This run with the cases of a later one: in the place of its own, or at the end."""
        cases = {result.case.id: result for result in (*self.cases, *later.cases)}
        commits = dict.fromkeys((*self.commit.split(", "), later.commit))
        return dataclasses.replace(
            self,
            commit=", ".join(commits),
            command=f"{self.command}; {later.command}",
            seconds=self.seconds + later.seconds,
            cases=list(cases.values()),
        )

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what `save` wrote.

        Raises:
            ValueError: It is not such a file, or of another schema; the text says which.
        """
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        found = data.pop("schema", None) if isinstance(data, dict) else None
        if found != SCHEMA:
            raise ValueError(f"{path} has schema {found!r}, this version reads {SCHEMA}")
        data["cases"] = [
            CaseResult(
                Case.from_dict(item["case"]), [Sample(**sample) for sample in item["samples"]]
            )
            for item in data["cases"]
        ]
        return cls(**data)
