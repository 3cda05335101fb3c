"""Plots of what calls cost: CPU per call and side, the parts of a call, growth with replicas."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.results import stats
from bench.results.costs import Cost
from bench.results.run import CaseResult
from bench.show.plot_style import (
    CALLEE_COLOURS,
    OTHER,
    PALETTE,
    SHAPES,
    STYLE,
    WIDTH_IN,
    colour,
    no_axis,
    set_log_y,
)
from bench.show.wording import number, transport

__all__ = ["Panel", "cpu", "growth", "parts"]

Panel = tuple[str, dict[str, list[tuple[float, float]]]]
"""A title, and by name the points (x, value), ascending."""

SIDES = {"caller": ("o", "#0072b2"), "replica": ("s", "#d55e00"), "both": ("D", "#3c3c3c")}


@matplotlib.rc_context(STYLE)
def cpu(results: Sequence[CaseResult], titles: Sequence[str]) -> Figure:
    """CPU per call and side, one panel a case: the caller's part, then the callee's."""
    named = [
        [n for n in reversed(r.case.contenders) if stats.median(r, n, "caller_cpu_us") is not None]
        for r in results
    ]
    heights = [0.6 + 0.26 * len(names) for names in named]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)))
    grid = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)
    for axes, result, names, title in zip(grid[:, 0], results, named, titles, strict=True):
        longest = 0.0
        for place, name in enumerate(names):
            caller = stats.median(result, name, "caller_cpu_us") or 0.0
            callee = stats.median(result, name, "callee_cpu_us") or 0.0
            light = CALLEE_COLOURS.get(transport(name), "#c9b3dd")
            axes.barh(place, caller, height=0.7, color=colour(name))
            axes.barh(place, callee, height=0.7, left=caller, color=light)
            axes.annotate(
                f"{number(caller)} + {number(callee)}",
                (caller + callee, place),
                (4, 0),
                textcoords="offset points",
                va="center",
            )
            longest = max(longest, caller + callee)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, longest * 1.25 or 1)
        axes.set_title(f"{title}: µs of CPU per call, caller (dark) + callee (light)")
        no_axis(axes)
    return figure


@matplotlib.rc_context(STYLE)
def parts(costs: Sequence[Cost]) -> Figure:
    """The micro-benchmarks as dots, on one logarithmic axis, those of one part side by side."""
    heads = list(dict.fromkeys(cost.part for cost in costs))
    groups = [[cost for cost in costs if cost.part == part] for part in heads]
    heights = [0.4 + 0.19 * len(group) for group in groups]
    figure = Figure(figsize=(WIDTH_IN, 0.7 + sum(heights)))
    grid = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=heights)
    for axes, part, group in zip(grid[:, 0], heads, groups, strict=True):
        names = [cost.what for cost in group]
        for place, cost in enumerate(group):
            marker, shade = SIDES.get(cost.side, ("v", OTHER))
            axes.plot(cost.us_per_call, place, marker, color=shade)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(part, fontweight="bold")
        axes.grid(True)
    values = [cost.us_per_call for cost in costs]
    last = grid[-1, 0]
    last.set_xscale("log")
    last.set_xlim(min(values) / 1.6, max(values) * 1.6)
    last.xaxis.set_minor_locator(NullLocator())
    last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    last.set_xlabel("µs of CPU per call (logarithmic)")
    seen = dict.fromkeys(cost.side for cost in costs)
    handles = [
        Line2D([], [], marker=marker, color=shade, linestyle="none", label=side)
        for side, (marker, shade) in SIDES.items()
        if side in seen
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1)
    return figure


@matplotlib.rc_context(STYLE)
def growth(panels: Sequence[Panel]) -> Figure:
    """Lines of numbers that grow with replicas or connections, one panel below the other."""
    legend_rows = [(len(series) + 1) // 2 for _, series in panels]
    heights = [1.9 + 0.19 * rows for rows in legend_rows]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)))
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, (title, series) in zip(grid[:, 0], panels, strict=True):
        for place, (name, points) in enumerate(series.items()):
            marker, dashes = list(SHAPES.values())[place % len(SHAPES)]
            axes.plot(
                [x for x, _ in points],
                [value for _, value in points],
                color=PALETTE[place % len(PALETTE)],
                marker=marker,
                linestyle=dashes,
                label=name,
            )
        seen = [value for points in series.values() for _, value in points]
        places = sorted({x for points in series.values() for x, _ in points})
        axes.set_title(title)
        axes.grid(True)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places, [f"{x:,g}" for x in places])
        if min(seen) > 0 and max(seen) / min(seen) >= 10:
            set_log_y(axes, min(seen), max(seen))
        else:
            axes.set_ylim(min(0, *seen), (max(seen) or 1) * 1.15)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2)
    return figure
