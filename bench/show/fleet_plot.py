"""The picture of simulated fleets: sessions and load over the replicas, and how long calls wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.show.plot_style import PALETTE, STYLE, WIDTH_IN, svg

__all__ = ["draw_fleets"]

POINTS = 60
"""Of each line: it is smooth."""
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))

FleetRun = tuple[str, Sequence[float], Sequence[float], Sequence[float]]
"""Policy; sessions and load of each replica; seconds that each call waited."""


@matplotlib.rc_context(STYLE)
def draw_fleets(path: Path, runs: Iterable[FleetRun]) -> None:
    """Write the picture as SVG; a line for each run."""
    figure = Figure(figsize=(WIDTH_IN, 5.6))
    sessions, loads, waits = figure.subplots(3, 1)
    for (policy, of_sessions, of_loads, of_waits), colour, dashes in zip(
        runs, PALETTE, DASHES, strict=False
    ):
        looks = {"color": colour, "linestyle": dashes, "label": policy}
        shares, values = _ranked(of_sessions)
        sessions.plot(shares, values, **looks)
        shares, values = _ranked(of_loads)
        loads.plot(shares, [100 * value for value in values], **looks)
        shares, values = _tail(of_waits)
        waits.plot([1000 * value for value in values], shares, **looks)
    sessions.set_yscale("log")
    _name(sessions, "sessions of a replica", "replicas, from few to many (%)")
    _name(loads, "slots of a replica that are taken, %", "replicas, from idle to busy (%)")
    waits.set_yscale("log")
    _name(waits, "calls that waited for a slot longer than that, %", "ms")
    handles, labels = sessions.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    path.write_text(svg(figure))


def _name(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(below)
    axes.grid(True)


def _ranked(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Share of the replicas, in percent, and the value that so many do not exceed."""
    ranked = sorted(values)
    shares = [100 * place / (POINTS - 1) for place in range(POINTS)]
    return shares, [ranked[round(share / 100 * (len(ranked) - 1))] for share in shares]


def _tail(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Share of the calls, in percent, and how long they waited at least."""
    ranked = sorted(values, reverse=True)
    shares = [100 * 10 ** (-4 * place / (POINTS - 1)) for place in range(POINTS)]
    return shares, [
        ranked[min(len(ranked) - 1, int(share / 100 * len(ranked)))] for share in shares
    ]
