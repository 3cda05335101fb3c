"""Which plots a run gives, with the words that belong to them.

A picture is the SVG text, an alternative text for who does not see it, and a caption. The report
has all of them, the documentation a few of the same. A picture is drawn when it is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.results import stats
from bench.results.costs import Cost
from bench.results.run import CaseResult, Run
from bench.show import cost_plots, plots
from bench.show.lanes import Lane, Section, summary
from bench.show.plot_style import svg
from bench.show.wording import METRICS

__all__ = [
    "Picture",
    "growth_groups",
    "inline",
    "of_cpu",
    "of_growth",
    "of_lane",
    "of_parts",
    "write",
]


@dataclass(frozen=True)
class Picture:
    """A plot and its words.

    Attributes:
        slug: Name of its file, without the ending.
        draw: Draws the plot.
        alt: What it shows, for who does not see it.
        caption: One or two sentences below it.
    """

    slug: str
    draw: Callable[[], Figure]
    alt: str
    caption: str

    @cached_property
    def svg(self) -> str:
        """The text of its file."""
        return svg(self.draw())


def of_lane(section: Section, lane: Lane) -> Picture | None:
    """Throughput and latency along the lane; None if nothing in it has a number."""
    metrics = [metric for metric in (lane.rate, lane.latency) if metric in lane.metrics]
    if not metrics:
        return None
    draw = plots.over_axis if lane.has_line else plots.bars
    what = " and ".join(METRICS[metric].noun for metric in metrics)
    over = f" over {lane.axis}" if lane.has_line else ""
    alt = f"{section.title}, {lane.title}: {what}{over} of {', '.join(lane.contenders)}."
    return Picture(lane.slug, partial(draw, lane), alt, summary(lane))


def of_cpu(run: Run) -> Picture | None:
    """CPU per call and side, for one case of each set of flags; None without such numbers.

    The case with most contenders is shown, and of these the one with most calls in flight.
    """
    chosen: dict[str, CaseResult] = {}
    for result in run.cases:
        best = chosen.get(result.case.flags)
        if _cpu_numbers(result) and (best is None or _cpu_rank(result) > _cpu_rank(best)):
            chosen[result.case.flags] = result
    if not chosen:
        return None
    results = list(chosen.values())
    titles = [result.case.id for result in results]
    alt = f"CPU time per call of caller and callee in {' and '.join(titles)}."
    caption = (
        "CPU of the whole process, per call. The caller's includes the load generator, the same "
        "for all; calls in a batch share what a message costs."
    )
    return Picture("cpu", partial(cost_plots.cpu, results, titles), alt, caption)


def _cpu_numbers(result: CaseResult) -> int:
    names = result.case.contenders
    return sum(stats.median(result, name, "caller_cpu_us") is not None for name in names)


def _cpu_rank(result: CaseResult) -> tuple[int, float]:
    return _cpu_numbers(result), result.case.workload.get("in_flight", 0)


def of_parts(costs: Sequence[Cost]) -> Picture | None:
    """The micro-benchmarks; None without any."""
    if not costs:
        return None
    names = dict.fromkeys(cost.part for cost in costs)
    caption = "CPU time of one process; times of batches are divided by their calls."
    alt = f"CPU per call of {', '.join(names)}."
    return Picture("parts", partial(cost_plots.parts, costs), alt, caption)


def growth_groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[float, ...], dict[str, Any]]:
    """Rows by the places they were measured at, then by name: "unit", and "values" by place."""
    names: dict[str, dict[str, Any]] = {}
    for row in rows:
        series = names.setdefault(row["name"], {"unit": row["unit"], "values": {}})
        series["values"][row["x"]] = row["value"]
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for name, series in names.items():
        groups.setdefault(tuple(sorted(series["values"])), {})[name] = series
    return groups


def of_growth(places: tuple[float, ...], group: dict[str, Any]) -> Picture | None:
    """One panel a unit; None if there is nothing to draw a line through."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}  # by unit
    for name, series in group.items():
        if series["unit"] and len(places) > 1:
            panels.setdefault(series["unit"], {})[name] = sorted(series["values"].items())
    if not panels:
        return None
    titled = [(f"{unit} over the number of replicas", panels[unit]) for unit in panels]
    drawn = [name for series in panels.values() for name in series]
    first, last = f"{places[0]:,g}", f"{places[-1]:,g}"
    alt = f"From {first} to {last} replicas: {', '.join(drawn)}."
    caption = f"From {first} to {last} replicas."
    return Picture(f"growth-{places[-1]:g}", partial(cost_plots.growth, titled), alt, caption)


def inline(picture: Picture) -> str:
    """The SVG element alone, with the alternative text, and with ids no other picture has."""
    text = picture.svg[picture.svg.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{picture.slug}-', text)
    text = re.sub(r'href="#', f'href="#{picture.slug}-', text)
    text = text.replace("url(#", f"url(#{picture.slug}-")
    alt = picture.alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)


def write(pictures: Sequence[Picture], directory: Path) -> None:
    """Write them as files, and remove those of an earlier run."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    for picture in pictures:
        (directory / f"{picture.slug}.svg").write_text(picture.svg)
