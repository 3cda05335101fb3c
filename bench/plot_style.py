"""How every plot looks, and how a figure becomes SVG text.

Plots are legible at 700 px: one column of panels, 9 pt. A transport has one colour everywhere, a
serializer one marker and one dash. SVG is reproducible: ids come from a fixed salt, and no date is
written. Figures are made without pyplot: no backend is chosen, and nothing has to be closed.
"""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.wording import transport

__all__ = [
    "CALLEE_COLOURS",
    "OTHER",
    "PALETTE",
    "SHAPES",
    "STYLE",
    "WIDTH_IN",
    "colour",
    "no_axis",
    "set_log_y",
    "shape",
    "svg",
]

WIDTH_IN = 7.2  # at 72 pt to the inch and 96 px: 691 px
STYLE: Any = {
    "svg.hashsalt": "serve_grpc",
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
}
# Told apart with any kind of colour vision (Okabe and Ito), and on grey paper by their darkness.
COLOURS = {
    "serve_grpc": "#007a5a",
    "serve": "#0072b2",
    "by reference": "#d55e00",
    "bare unary": "#8c8c8c",
    "bare stream": "#3c3c3c",
}
CALLEE_COLOURS = {
    "serve_grpc": "#7cc4ad",
    "serve": "#85bde0",
    "by reference": "#f0ad7d",
    "bare unary": "#cfcfcf",
    "bare stream": "#a3a3a3",
}
OTHER = "#9467bd"
SHAPES: dict[str, tuple[str, Any]] = {
    "cloudpickle": ("o", "-"),
    "pickle": ("s", (0, (5, 1.5))),
    "msgpack": ("^", (0, (1.2, 1.2))),
    "orjson": ("D", (0, (5, 1.5, 1.2, 1.5))),
}
PALETTE = ("#007a5a", "#0072b2", "#d55e00", "#7a4fa3", "#3c3c3c", "#a67c00", "#c2185b", "#5f8dd3")
"""For lines that are not contenders."""


@matplotlib.rc_context(STYLE)
def svg(figure: Figure) -> str:
    """The figure as SVG text, without date and metadata."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def colour(contender: str) -> str:
    """Of its transport."""
    return COLOURS.get(transport(contender), OTHER)


def shape(contender: str) -> tuple[str, Any]:
    """Marker and dashes of its serializer."""
    serializer = contender.partition(": ")[2].partition(" ")[0]
    return SHAPES.get(serializer, ("o", "-") if not serializer else ("v", ":"))


def set_log_y(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis whose few ticks are written as plain numbers."""
    axes.set_yscale("log")
    margin = max(1.25, (high / low) ** 0.06)
    axes.set_ylim(low / margin, high * margin)
    decades = math.log10(high / low)
    steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.7 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def no_axis(axes: Axes) -> None:
    """Bars have their numbers beside them and need no scale."""
    axes.xaxis.set_major_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
