"""What the terminal shows: a table for each case, the table of targets, the plan, the progress."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.plan.contenders import OURS
from bench.plan.plans import Plan
from bench.results import stats
from bench.results.doors import doors_of
from bench.results.run import CaseResult, Run
from bench.show.lanes import lane_over_grpc
from bench.show.wording import duration, number, short
from bench.workers import estimate, groups

__all__ = [
    "LiveProgress",
    "case_table",
    "doors_table",
    "failures_table",
    "plan_table",
    "targets_table",
]

HEADINGS = {
    "calls_per_s": "calls/s",
    "tokens_per_s": "tokens/s",
    "first_token_p50_ms": "1st ms",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "fairness": "fair",
    "large_per_s": "large/s",
    "memory_before_mib": "MiB before",
    "memory_most_mib": "most",
    "memory_left": "left",
}
"""Of `Sample`'s fields, as far as 80 columns have room for them; the report has them all."""
MET = {True: "[green]yes[/]", False: "[red]no[/]", None: "not measured"}


class LiveProgress:
    """A `runner.Watcher` that shows a bar, and a table as soon as a case is finished.

    Attributes:
        has_failed: Whether a part of the run, not just a contender, could not be measured.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self.has_failed = False
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=groups.seconds(plan))

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def doing(self, text: str) -> None:
        """Write it beside the bar."""
        self._bar.update(self._task, description=short(text, 60))

    def passed(self, seconds: float) -> None:
        """Move the bar."""
        self._bar.advance(self._task, seconds)

    def finished(self, result: CaseResult) -> None:
        """Print the case."""
        self._console.print(case_table(result))

    def failed(self, text: str) -> None:
        """Print it, so that it is still there at the end."""
        self.has_failed = True
        self._console.print(text, style="red", markup=False)


def case_table(result: CaseResult) -> Table:
    """The medians of one case, how many times as many calls as each of them ours makes, and below
    them the lane over gRPC."""
    case = result.case
    metrics = [m for m in HEADINGS if any(getattr(s, m) is not None for s in result.samples)]
    rate = "calls_per_s"
    if "tokens_per_s" in metrics:
        rate = "tokens_per_s"
        metrics.remove("calls_per_s")
    table = _table(case.id)
    table.add_column("")
    for metric in metrics:
        table.add_column(HEADINGS[metric], justify="right", no_wrap=True)
    if OURS in case.contenders:
        table.add_column("ours", justify="right", no_wrap=True)
    failed = []
    for contender in case.contenders:
        medians = [stats.median(result, contender, metric) for metric in metrics]
        cells = ["" if value is None else number(value) for value in medians]
        ratio = stats.paired_ratio(result, OURS, contender, rate)
        if ratio is not None and contender != OURS:
            cells.append(f"{ratio.median:.2f} ×")
        table.add_row(contender, *cells)
        failed += [f"{contender}: {short(why, 100)}" for why in stats.errors(result, contender)]
    notes = [Text(line) for line in _lane_over_grpc(result, metrics)]
    notes += [Text(line, style="red") for line in failed]
    if notes:
        table.caption = Text("\n").join(notes)
        table.caption_justify = "left"
    return table


def _lane_over_grpc(result: CaseResult, metrics: Iterable[str]) -> list[str]:
    """A line of the local lane's numbers over gRPC's; none if one of them has no number."""
    ratios = {metric: lane_over_grpc(result, metric) for metric in metrics}
    parts = [f"{HEADINGS[name]} {number(r.median)}" for name, r in ratios.items() if r is not None]
    return [f"lane / gRPC: {', '.join(parts)}"] if parts else []


def targets_table(run: Run) -> Table:
    """Every target of the run: whether it is met, the paired ratio, and both medians."""
    table = _table("Targets")
    table.add_column("target")
    table.add_column("met")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("ours", justify="right", no_wrap=True)
    table.add_column("best of the others")
    for found in stats.verdicts(run):
        ratio = "–" if found.ratio is None else number(found.ratio.median)
        is_met = MET[found.is_met]
        other = f"{_or_dash(found.other)} {found.against or ''}"
        table.add_row(found.target.title, is_met, ratio, _or_dash(found.ours), other)
    return table


def doors_table(run: Run) -> Table | None:
    """What proofs and TLS cost; None if it was not measured."""
    table = _table("Doors")
    for heading in ("", "p50, 1 in flight", "100 in flight"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for door, cells in doors_of(run.growth).items():
        table.add_row(door, *cells)
    return table if table.row_count else None


def plan_table(plan: Plan) -> Table:
    """The cases of a plan and how long they will take."""
    parts = [f"{len(plan.cases)} cases"]
    parts += ["growth"] if plan.has_growth else []
    parts += ["costs"] if plan.has_costs else []
    parts += ["doors"] if plan.has_doors else []
    table = _table(f"{', '.join(parts)}: about {duration(groups.seconds(plan))}")
    table.caption = f"{plan.rounds} rounds, windows of {plan.window_s} s; starts of Ray included"
    for name in ("case", "x", "contenders", "targets", "seconds"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for case in plan.cases:
        seconds = estimate.case_s(case, plan.rounds, plan.window_s)
        counts = (len(case.contenders), len(case.targets), round(seconds))
        table.add_row(case.id, f"{case.x:,g}", *map(str, counts))
    return table


def failures_table(run: Run) -> Table | None:
    """Everything that failed and why, each reason once; None if nothing did."""
    table = _table("Failed")
    for name in ("case", "contender", "why"):
        table.add_column(name)
    for result in run.cases:
        for contender in result.case.contenders:
            for reason in stats.errors(result, contender):
                table.add_row(result.case.id, contender, Text(short(reason, 200)))
    return table if table.row_count else None


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)
