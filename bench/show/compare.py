"""Two runs side by side: what changed beyond noise, in absolute numbers and in ratios.

Ratios are paired by round against the best of Serve's own transports, so a machine that was slower
the second time moves both sides and cancels out. Absolute numbers say it all if machine, versions
and plan are the same, which is checked. What noise is says `noise.RULE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import noise, stats
from bench.results.doors import BARE
from bench.results.run import CaseResult, Run
from bench.show.lanes import COMPARED, serves_own
from bench.show.wording import METRICS, duration, number, short, transport

__all__ = ["print_comparison"]

OURS = "serve_grpc"
NOT_THE_MACHINE = ("load_before",)


@dataclass(frozen=True)
class Pair:
    """One number's rounds in both runs.

    Attributes:
        where: Case or row of growth.
        metric: Its title.
        against: With whom the ratio is formed; empty for absolute numbers.
    """

    where: str
    contender: str
    metric: str
    against: str
    is_more_better: bool
    old: Sequence[float]
    new: Sequence[float]


@dataclass(frozen=True)
class Row:
    """One number that changed beyond noise."""

    pair: Pair
    change: noise.Change

    @property
    def is_worse(self) -> bool:
        """Whether the change is to the bad."""
        return (self.change.relative < 0) == self.pair.is_more_better


def print_comparison(old: Run, new: Run, console: Console) -> bool:
    """Print what changed from `old` to `new` beyond noise.

    A change counts if the medians differ by more than 10 % and by more than four standard errors
    of their difference, and if each run's median lies outside the other run's rounds. The error is
    estimated from the rounds' median absolute deviation, and is at least what is usual for the
    metric in these runs. With fewer than three rounds 40 % is needed. The output says so too.

    Returns:
        Whether something of serve_grpc got worse: a number, absolute or as a ratio, or a window
        that has an error now. Changes of the other contenders are printed, but do not count.
    """
    console.print(f"[bold]old[/] {_title(old)}\n[bold]new[/] {_title(new)}", highlight=False)
    for text in _differences(old, new):
        console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)
    console.print(noise.RULE, style="dim", markup=False, highlight=False)
    before = {result.case.id: result for result in old.cases}
    cases = [
        (before[result.case.id], result)
        for result in new.cases
        if result.case.id in before and _is_same(before[result.case.id], result)
    ]
    ratios = list(_beyond_noise([pair for case in cases for pair in _ratios(*case)]))
    numbers = [pair for case in cases for pair in _absolute(*case)]
    absolute = list(_beyond_noise([*numbers, *_growth(old, new)]))
    errors = [error for case in cases for error in _new_errors(*case)]
    if ratios:
        console.print(_table("Ratios, paired by round", ratios))
    if absolute:
        console.print(_table("Absolute numbers", absolute))
    for _, text in errors:
        console.print(f"fails now: {text}", style="red", markup=False, highlight=False)
    if not (ratios or absolute or errors):
        console.print(f"nothing changed beyond noise in {len(cases)} cases", style="bold")
    is_worse = any(row.is_worse and _is_ours(row.pair.contender) for row in (*ratios, *absolute))
    return is_worse or any(_is_ours(contender) for contender, _ in errors)


def _is_ours(contender: str) -> bool:
    return transport(contender).startswith(OURS)


# ---------------------------------------------------------------- can they be compared


def _title(run: Run) -> str:
    plan = "quick plan" if run.is_quick else "full plan"
    text = f"{run.commit}, {run.started}, {plan}, {duration(run.seconds)}"
    return escape(text)


def _differences(old: Run, new: Run) -> Iterator[str]:
    """What makes the runs hard to compare, one sentence each."""
    yield from _differing("machine", old.machine, new.machine, NOT_THE_MACHINE)
    yield from _differing("versions", old.versions, new.versions, ())
    if old.is_quick != new.is_quick:
        yield "one run is of the quick plan, which has shorter windows and fewer rounds"
    before = {result.case.id: result for result in old.cases}
    after = {result.case.id: result for result in new.cases}
    if gone := [name for name in before if name not in after]:
        yield f"only in the old run: {short(', '.join(gone))}"
    if added := [name for name in after if name not in before]:
        yield f"only in the new run: {short(', '.join(added))}"
    for name in before:
        if name in after and not _is_same(before[name], after[name]):
            yield f"{name} is another workload or has other flags now; it is not compared"
    counts = [_rounds(run) for run in (old, new)]
    if counts[0] != counts[1]:
        yield f"the old run has {counts[0]} rounds, the new one {counts[1]}"


def _differing(
    what: str, old: dict[str, Any], new: dict[str, Any], ignored: tuple[str, ...]
) -> Iterator[str]:
    keys = [key for key in dict.fromkeys((*old, *new)) if key not in ignored]
    texts = [
        f"{key} {old.get(key, '-')} -> {new.get(key, '-')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]
    if texts:
        yield f"{what} differ: {'; '.join(texts)}"


def _is_same(old: CaseResult, new: CaseResult) -> bool:
    return (old.case.flags, old.case.workload) == (new.case.flags, new.case.workload)


def _rounds(run: Run) -> int:
    return max((sample.round + 1 for r in run.cases for sample in r.samples), default=0)


# ---------------------------------------------------------------- what changed


def _beyond_noise(pairs: Sequence[Pair]) -> Iterator[Row]:
    by_metric: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_metric.setdefault(pair.metric, []).append(pair)
    usual = {
        metric: noise.usual_error((pair.old, pair.new) for pair in alike)
        for metric, alike in by_metric.items()
    }
    for pair in pairs:
        change = noise.compare(pair.old, pair.new, usual[pair.metric])
        if change is not None and change.is_beyond_noise:
            yield Row(pair, change)


def _absolute(old: CaseResult, new: CaseResult) -> Iterator[Pair]:
    for contender in new.case.contenders:
        for metric, words in METRICS.items():
            yield Pair(
                where=new.case.id,
                contender=contender,
                metric=words.title,
                against="",
                is_more_better=metric in stats.HIGHER_IS_BETTER,
                old=list(stats.values(old, contender, metric).values()),
                new=list(stats.values(new, contender, metric).values()),
            )


def _ratios(old: CaseResult, new: CaseResult) -> Iterator[Pair]:
    """Against what was the best of Serve's own in the old run."""
    for metric in COMPARED:
        against = stats.best(old, serves_own(old), metric)
        for contender in new.case.contenders:
            if against is not None and contender != against:
                yield Pair(
                    where=new.case.id,
                    contender=contender,
                    metric=METRICS[metric].title,
                    against=against,
                    is_more_better=metric in stats.HIGHER_IS_BETTER,
                    old=_by_round(old, contender, against, metric),
                    new=_by_round(new, contender, against, metric),
                )


def _by_round(result: CaseResult, contender: str, against: str, metric: str) -> list[float]:
    ours = stats.values(result, contender, metric)
    others = stats.values(result, against, metric)
    return [ours[number] / others[number] for number in ours if others.get(number)]


def _growth(old: Run, new: Run) -> Iterator[Pair]:
    """Rows of growth, costs and doors are one number each; less is better, but for calls/s."""
    before = {_growth_key(row): row["value"] for row in old.growth}
    for row in new.growth:
        if (key := _growth_key(row)) in before:
            where = f"{row['name']}, {row['x']:,g}"
            if "part" in row:
                where = f"{row['part']}, {row['side']}: {row['name']}"
            is_rate = row["unit"] == "calls/s"
            contender = BARE if row.get("door") == BARE else OURS
            yield Pair(
                where,
                contender,
                row["unit"],
                "",
                is_rate,
                [before[key]],
                [row["value"]],
            )


def _growth_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["name"], row["x"], row["unit"], row.get("part"), row.get("side")


def _new_errors(old: CaseResult, new: CaseResult) -> Iterator[tuple[str, str]]:
    """Contender and text of what has an error in the new run and had none in the old one."""
    for contender in new.case.contenders:
        if contender in old.case.contenders and not stats.errors(old, contender):
            for text in stats.errors(new, contender):
                yield contender, f"{new.case.id}, {contender}: {short(text)}"


# ---------------------------------------------------------------- output


def _table(title: str, rows: Iterable[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("case", "contender", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("old", "new", "change", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        pair, change = row.pair, row.change
        who = f"{pair.contender} ÷ {pair.against}" if pair.against else pair.contender
        table.add_row(
            escape(pair.where),
            escape(who),
            pair.metric,
            number(change.old),
            number(change.new),
            f"{change.relative:+.0%}",
            f"±{change.needed:.0%}",
            "[red]worse[/]" if row.is_worse else "[green]better[/]",
        )
    return table
