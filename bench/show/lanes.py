"""A run cut into what pages show: sections, and in each of them lanes.

A section is one sweep. A lane is a line through it: cases that differ only in the place on the
axis, so that they can share one plot. Here is also what is compared with what: `serve_grpc` with
the best of Serve's own transports, and its local lane with its gRPC. The carrier is called "local
lane" in this room, to tell it from the lanes of a section. Pure: no drawing, no HTML.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.plan.contenders import OURS as OVER_LOCAL_LANE
from bench.plan.contenders import OVER_GRPC
from bench.results import stats
from bench.results.run import CaseResult, Run
from bench.show.wording import METRICS, SWEEPS, number, size, transport

__all__ = [
    "COMPARED",
    "Behind",
    "Lane",
    "Section",
    "against_best",
    "behind",
    "gain",
    "lane_over_grpc",
    "ours",
    "sections",
    "serves_own",
    "summary",
    "x_label",
]

SERVES = ("by reference", "serve")
OURS = "serve_grpc"
DEFAULT_SERIALIZER = "cloudpickle"
FLAGS = {"default": "default flags", "throughput": "throughput-optimised flags"}
COMPARED = ("calls_per_s", "tokens_per_s", "p50_ms", "p99_ms", "first_token_p50_ms")


@dataclass(frozen=True)
class Lane:
    """Cases of one sweep that share a plot.

    Attributes:
        sweep, axis: Of its cases.
        title: What they have in common.
        results: By their place on the axis, ascending.
    """

    sweep: str
    axis: str
    title: str
    results: tuple[CaseResult, ...]

    @property
    def has_line(self) -> bool:
        """Whether there are enough points to draw lines through; bars show fewer better."""
        return len({result.case.x for result in self.results}) > 2

    @property
    def slug(self) -> str:
        """For file names and anchors."""
        text = f"{self.sweep} {self.title}".lower().replace("'", "").removesuffix(" flags")
        return re.sub(r"[^a-z0-9]+", "-", text).strip("-")

    @property
    def contenders(self) -> tuple[str, ...]:
        """All that take part in any case, each once, those of one transport side by side."""
        names = dict.fromkeys(name for r in self.results for name in r.case.contenders)
        transports = list(dict.fromkeys(transport(name) for name in names))
        return tuple(sorted(names, key=lambda name: transports.index(transport(name))))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that have a number anywhere in the lane."""
        samples = [sample for result in self.results for sample in result.samples]
        return tuple(m for m in METRICS if any(getattr(s, m) is not None for s in samples))

    @property
    def rate(self) -> str:
        """The metric of throughput that says most."""
        return "tokens_per_s" if "tokens_per_s" in self.metrics else "calls_per_s"

    @property
    def latency(self) -> str:
        """The metric of latency that says most."""
        return "first_token_p50_ms" if "first_token_p50_ms" in self.metrics else "p50_ms"


@dataclass(frozen=True)
class Section:
    """One sweep.

    Attributes:
        title, intro: For its heading, and what is measured in it.
    """

    sweep: str
    title: str
    intro: str
    lanes: tuple[Lane, ...]


@dataclass(frozen=True)
class Behind:
    """A point where the best of Serve's own, `against`, is better than serve_grpc."""

    result: CaseResult
    metric: str
    against: str
    ratio: stats.Ratio


def sections(run: Run) -> list[Section]:
    """All cases of a run, in the order in which sweeps first appear in it."""
    sweeps: dict[str, list[CaseResult]] = {}
    for result in run.cases:
        sweeps.setdefault(result.case.sweep, []).append(result)
    found = []
    for sweep, results in sweeps.items():
        title, intro = SWEEPS.get(sweep, (sweep.replace("-", " ").capitalize(), ""))
        found.append(Section(sweep, title, intro, tuple(_lanes(results))))
    return found


def _lanes(results: list[CaseResult]) -> Iterator[Lane]:
    keys = _distinguishing(results)
    lanes: dict[tuple[str, ...], list[CaseResult]] = {}
    for result in results:
        case = result.case
        values = (repr(case.workload.get(key)) for key in keys)
        lanes.setdefault((case.flags, case.axis, *values), []).append(result)
    for members in lanes.values():
        first = members[0].case
        words = [_describe(key, first.workload.get(key)) for key in keys]
        title = ", ".join([*words, FLAGS.get(first.flags, first.flags)])
        ordered = tuple(sorted(members, key=lambda result: result.case.x))
        yield Lane(first.sweep, first.axis, title, ordered)


def _distinguishing(results: list[CaseResult]) -> tuple[str, ...]:
    """The fewest keys of the workloads that tell cases at one place of the axis from each other.

    What merely follows from the place, such as a limit that grows with the payload, does not count.
    """
    cases = [result.case for result in results]
    names = dict.fromkeys(key for case in cases for key in case.workload)
    keys = sorted(names, key=lambda key: key != "series")  # the plan's own word for it comes first

    def tells_apart(chosen: tuple[str, ...]) -> bool:
        places = [
            (c.flags, c.axis, c.x, *(repr(c.workload.get(key)) for key in chosen)) for c in cases
        ]
        return len(set(places)) == len(places)

    for count in range(len(keys) + 1):
        for chosen in itertools.combinations(keys, count):
            if tells_apart(chosen):
                return chosen
    return ()


def _describe(key: str, value: object) -> str:
    if key == "series":
        return f"{value}"
    return f"{key.replace('_', ' ')}: {'-' if value is None else value}"


def x_label(axis: str, x: float, *, is_tick: bool = False) -> str:
    """A place on an axis: "10 KB", "100 in flight"; as a tick without the axis' name."""
    if re.search("payload|bytes|size", axis):
        return size(x)
    return f"{x:,g}" if is_tick or not axis else f"{x:,g} {axis}"


# ---------------------------------------------------------------- what is compared with what


def ours(result: CaseResult) -> str | None:
    """The contender that stands for serve_grpc: the default serializer, else its first."""
    found = [name for name in result.case.contenders if transport(name) == OURS]
    default = [name for name in found if name == f"{OURS}: {DEFAULT_SERIALIZER}"]
    return next(iter(default or found), None)


def serves_own(result: CaseResult) -> tuple[str, ...]:
    """Ray by reference and Serve's own gRPC with every serializer, as far as they take part.

    Those with a number of callers of their own carry another load and are not among them.
    """
    names = result.case.contenders
    return tuple(name for name in names if transport(name) in SERVES and "(" not in name)


def against_best(result: CaseResult, metric: str) -> stats.Ratio | None:
    """serve_grpc over the best of Serve's own, paired by round."""
    name, against = ours(result), stats.best(result, serves_own(result), metric)
    if name is None or against is None:
        return None
    return stats.paired_ratio(result, name, against, metric)


def lane_over_grpc(result: CaseResult, metric: str) -> stats.Ratio | None:
    """The local lane's number over gRPC's, both of serve_grpc, paired by round."""
    return stats.paired_ratio(result, OVER_LOCAL_LANE, OVER_GRPC, metric)


def gain(metric: str, ratio: float) -> float:
    """How many times better: a ratio turned so that more is better."""
    if metric in stats.HIGHER_IS_BETTER:
        return ratio
    return 1 / ratio if ratio else math.inf


def summary(lane: Lane) -> str:
    """How serve_grpc stands against the best of Serve's own, and its local lane against gRPC."""
    found = []
    against = (
        ("Times better than the best of Serve's own (below 1: worse)", against_best),
        ("The local lane, times better than gRPC", lane_over_grpc),
    )
    for gains_of, ratio_of in against:
        if parts := list(_ranges(lane, ratio_of)):
            found.append(f"{gains_of}: {', '.join(parts)}.")
    return " ".join(found)


def _ranges(lane: Lane, ratio_of: Callable[[CaseResult, str], stats.Ratio | None]) -> Iterator[str]:
    for metric in (lane.rate, lane.latency):
        ratios = (ratio_of(result, metric) for result in lane.results)
        gains = sorted(gain(metric, ratio.median) for ratio in ratios if ratio is not None)
        if gains:
            low, high = number(gains[0]), number(gains[-1])
            yield f"{METRICS[metric].noun} {low if low == high else f'{low} to {high}'}"


def behind(run: Run) -> list[Behind]:
    """Where the median ratio says that serve_grpc is worse than the best of Serve's own."""
    found = []
    for result in run.cases:
        for metric in COMPARED:
            against = stats.best(result, serves_own(result), metric)
            ratio = against_best(result, metric)
            if against and ratio and gain(metric, ratio.median) < 1:
                found.append(Behind(result, metric, against, ratio))
    return found
