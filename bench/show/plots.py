"""Plots of the cases: lines over an axis, bars where there are few places on it.

Nothing is computed here but where things stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.results import stats
from bench.results.run import CaseResult
from bench.show.lanes import Lane, against_best, gain, ours, serves_own, x_label
from bench.show.plot_style import STYLE, WIDTH_IN, colour, no_axis, set_log_y, shape
from bench.show.wording import METRICS, number

__all__ = ["bars", "over_axis"]

RATIO_LOOKS = (("o", "-", "#007a5a"), ("s", "--", "#7a4fa3"))


# ---------------------------------------------------------------- over an axis


@matplotlib.rc_context(STYLE)
def over_axis(lane: Lane) -> Figure:
    """Throughput, latency and ratio over the lane's axis, one below the other."""
    metrics = [metric for metric in (lane.rate, lane.latency) if metric in lane.metrics]
    ratios = _ratio_lines(lane, metrics)
    count = len(metrics) + bool(ratios)
    figure = Figure(figsize=(WIDTH_IN, 0.7 + 2.25 * count))
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_metric(axes, lane, metric)
    if ratios:
        _draw_ratios(panels[-1], ratios)
    _set_x_axis(panels[-1], lane)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = 3 if len(labels) > 4 else len(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return figure


def _draw_metric(axes: Axes, lane: Lane, metric: str) -> None:
    seen: list[float] = []
    for name in lane.contenders:
        points = [
            (result.case.x, middle, *spread)
            for result in lane.results
            if (middle := stats.median(result, name, metric)) is not None
            and (spread := stats.spread(result, name, metric)) is not None
        ]
        seen += [value for point in points for value in point[1:]]
        marker, dashes = shape(name)
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            color=colour(name),
            marker=marker,
            linestyle=dashes,
            label=name,
        )
        _draw_spread(axes, [(x, low, high) for x, _, low, high in points], colour(name))
    axes.set_title(f"{METRICS[metric].title} ({_direction(metric)})")
    axes.grid(True)
    if seen and min(seen) > 0 and max(seen) / min(seen) >= 10:
        set_log_y(axes, min(seen), max(seen))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _draw_spread(axes: Axes, bounds: Sequence[tuple[float, float, float]], shade: str) -> None:
    """From the smallest to the largest round at each (x, low, high); all of them are one path."""
    axes.plot(
        [place for x, _, _ in bounds for place in (x, x, math.nan)],
        [value for _, low, high in bounds for value in (low, high, math.nan)],
        color=shade,
        linewidth=3,
        alpha=0.25,
    )


@dataclass(frozen=True)
class _Point:
    """How many times better than the best of Serve's own; the bounds are those of the rounds."""

    x: float
    gain: float
    low: float
    high: float
    target: float | None


def _ratio_lines(lane: Lane, metrics: Sequence[str]) -> dict[str, list[_Point]]:
    lines: dict[str, list[_Point]] = {}
    for metric in metrics:
        for result in lane.results:
            ratio = against_best(result, metric)
            if ratio is not None and ratio.low > 0:  # a logarithmic axis has no place for 0
                low, high = sorted((gain(metric, ratio.low), gain(metric, ratio.high)))
                middle = gain(metric, ratio.median)
                point = _Point(result.case.x, middle, low, high, _target(result, metric))
                lines.setdefault(metric, []).append(point)
    return lines


def _target(result: CaseResult, metric: str) -> float | None:
    """What the ratio to the best of Serve's own has to be, if the case says so."""
    for target in result.case.targets:
        bound = target.at_least or target.at_most
        is_same = (
            target.contender == ours(result)
            and target.against
            and set(target.against) == set(serves_own(result))
        )
        if target.metric == metric and is_same and bound:
            return gain(metric, bound)
    return None


def _draw_ratios(axes: Axes, lines: dict[str, list[_Point]]) -> None:
    seen = [1.0]
    for metric, (marker, dashes, shade) in zip(lines, RATIO_LOOKS, strict=False):
        points = lines[metric]
        axes.plot(
            [point.x for point in points],
            [point.gain for point in points],
            color=shade,
            marker=marker,
            linestyle=dashes,
            label=METRICS[metric].noun,
        )
        _draw_spread(axes, [(point.x, point.low, point.high) for point in points], shade)
        seen += [bound for point in points for bound in (point.low, point.high)]
        targets = [(point.x, point.target) for point in points if point.target is not None]
        if targets:
            seen += [target for _, target in targets]
            axes.plot(
                [x for x, _ in targets],
                [target for _, target in targets],
                color=shade,
                linestyle="none",
                marker="_",
                markersize=16,
                markeredgewidth=2,
                label=f"target ({METRICS[metric].noun})",
                zorder=3,
            )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_title("times better than the best of Serve's own")
    axes.grid(True)
    set_log_y(axes, min(seen), max(seen))
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4, handlelength=1.6, columnspacing=1.2
    )


def _set_x_axis(axes: Axes, lane: Lane) -> None:
    xs = sorted({result.case.x for result in lane.results})
    positive = [x for x in xs if x > 0]
    if positive[-1] / positive[0] < 20:
        margin = (xs[-1] - xs[0]) * 0.04
        axes.set_xlim(xs[0] - margin, xs[-1] + margin)
    elif xs[0] > 0:
        axes.set_xscale("log")
        axes.set_xlim(xs[0] / 1.3, xs[-1] * 1.3)
    else:  # 0 stands one step left of the smallest
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.8)
        axes.set_xlim(-0.3 * positive[0], xs[-1] * 1.6)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(xs, [x_label(lane.axis, x, is_tick=True) for x in xs])
    axes.set_xlabel(lane.axis)


# ---------------------------------------------------------------- bars


@matplotlib.rc_context(STYLE)
def bars(lane: Lane) -> Figure:
    """Throughput and latency side by side, for a lane of few cases, one below the other."""
    metrics = [metric for metric in (lane.rate, lane.latency) if metric in lane.metrics]
    heights = [0.55 + 0.26 * len(result.case.contenders) for result in lane.results]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)))
    grid = figure.subplots(
        len(lane.results), len(metrics), squeeze=False, sharey="row", height_ratios=heights
    )
    for row, result in zip(grid, lane.results, strict=True):
        names = list(reversed(result.case.contenders))
        for axes, metric in zip(row, metrics, strict=True):
            _draw_bars(axes, result, names, metric)
            axes.set_title(f"{METRICS[metric].title} ({_direction(metric)})")
        row[0].set_yticks(range(len(names)), names)
        if lane.axis:  # above the names
            where = x_label(lane.axis, result.case.x)
            above = {"xycoords": "axes fraction", "textcoords": "offset points"}
            row[0].annotate(where, (0, 1), (-10, 6), ha="right", fontweight="bold", **above)
    return figure


def _draw_bars(axes: Axes, result: CaseResult, names: Sequence[str], metric: str) -> None:
    longest = 0.0
    for place, name in enumerate(names):
        middle, spread = stats.median(result, name, metric), stats.spread(result, name, metric)
        if middle is None or spread is None:
            why = "failed" if stats.errors(result, name) else "no number"
            axes.annotate(why, (0, place), (4, 0), textcoords="offset points", va="center")
            continue
        axes.barh(place, middle, height=0.7, color=colour(name))
        axes.plot(spread, [place, place], color="black", linewidth=1)
        axes.annotate(
            number(middle), (spread[1], place), (4, 0), textcoords="offset points", va="center"
        )
        longest = max(longest, spread[1])
    axes.set_xlim(0, longest * 1.28 or 1)
    no_axis(axes)


def _direction(metric: str) -> str:
    return "more is better" if metric in stats.HIGHER_IS_BETTER else "less is better"
