"""The HTML report of a run: one file without anything from elsewhere, and its plots beside it.

Here the tables are put together; words come from `wording.py`, plots from `pictures.py`, and how it
looks is in `templates/report.html.j2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from bench.results import stats
from bench.results.costs import costs_of, without_costs
from bench.results.doors import doors_of, without_doors
from bench.results.run import CaseResult, Run
from bench.show import lanes, pictures
from bench.show.lanes import Lane
from bench.show.wording import METRICS, caveats, duration, facts, number, short

__all__ = ["TargetRow", "behind_rows", "environment", "error_rows", "target_rows", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
OUTCOMES = {True: "met", False: "not met", None: "no number"}


@dataclass(frozen=True)
class Cell:
    """A median and the spread of its rounds, as text."""

    text: str
    spread: str


@dataclass(frozen=True)
class Row:
    """A contender in one case.

    Attributes:
        cells: One for each metric of the lane; None where it has no number.
        ratio: Its throughput against the best of Serve's own.
        errors: Why rounds failed.
    """

    contender: str
    cells: list[Cell | None]
    ratio: Cell | None
    errors: list[str]


@dataclass(frozen=True)
class TargetRow:
    """A target as text.

    Attributes:
        outcome: "met", "not met" or "no number".
    """

    title: str
    case: str
    metric: str
    ours: str
    other: str
    against: str
    ratio: str
    spread: str
    target: str
    outcome: str


def write_report(run: Run, out_dir: Path) -> Path:
    """Write `out_dir/report.html` and `out_dir/pictures/*.svg`; return the former's path."""
    drawn: list[pictures.Picture] = []

    def shown(picture: pictures.Picture | None) -> dict[str, object] | None:
        if picture is None:
            return None
        drawn.append(picture)
        return {"svg": Markup(pictures.inline(picture)), "caption": picture.caption}

    sections = [
        {
            "section": section,
            "lanes": [
                {"lane": lane, "picture": shown(pictures.of_lane(section, lane)), **_table(lane)}
                for lane in section.lanes
            ],
        }
        for section in lanes.sections(run)
    ]
    growth = [
        {
            "places": [f"{place:,g}" for place in places],
            "picture": shown(pictures.of_growth(places, group)),
            "rows": [(name, _growth_cells(series, places)) for name, series in group.items()],
        }
        for places, group in pictures.growth_groups(
            without_doors(without_costs(run.growth))
        ).items()
    ]
    costs = costs_of(run.growth)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            machine=facts(run.machine),
            caveats=caveats(run),
            targets=list(target_rows(run)),
            behind=list(behind_rows(run)),
            errors=list(error_rows(run)),
            sections=sections,
            cpu=shown(pictures.of_cpu(run)),
            costs=costs,
            parts=shown(pictures.of_parts(costs)),
            growth=growth,
            doors=doors_of(run.growth),
            metrics=METRICS,
        )
    )
    pictures.write(drawn, out_dir / "pictures")
    path = out_dir / "report.html"
    path.write_text(page)
    return path


def environment() -> jinja2.Environment:
    """Where templates come from. HTML is escaped, Markdown is not."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is None or ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(
        number=number,
        short=short,
        duration=duration,
        prose=_prose,
        line=_line,
        cell=_cell,
        alt=_alt,
    )
    return found


def _prose(text: str) -> Markup:
    """Text for HTML, with what stands in `backticks` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _line(text: str) -> str:
    """One line of Markdown, in which nothing starts a tag."""
    return " ".join(text.replace("<", "&lt;").split())


def _cell(text: str) -> str:
    """A cell of a Markdown table."""
    return _line(text).replace("|", "\\|")


def _alt(text: str) -> str:
    """The alternative text of a Markdown image."""
    return _line(text).replace("[", "(").replace("]", ")")


# ---------------------------------------------------------------- tables


def _table(lane: Lane) -> dict[str, object]:
    compared = [metric for metric in lanes.COMPARED if metric in lane.metrics]
    return {
        "compared": [METRICS[metric].title for metric in compared],
        "carriers": list(_carriers(lane, compared)),
        "columns": [METRICS[metric].title for metric in lane.metrics],
        "cases": [
            {
                "id": result.case.id,
                "where": lanes.x_label(lane.axis, result.case.x) if lane.axis else "",
                "rounds": len({sample.round for sample in result.samples}),
                "rows": [_row(lane, result, name) for name in result.case.contenders],
            }
            for result in lane.results
        ],
    }


def _carriers(lane: Lane, metrics: list[str]) -> Iterator[tuple[str, list[Cell | None]]]:
    """The local lane's numbers over gRPC's, a row for each case that has both."""
    for result in lane.results:
        ratios = [lanes.lane_over_grpc(result, metric) for metric in metrics]
        if any(ratios):
            where = lanes.x_label(lane.axis, result.case.x) if lane.axis else result.case.id
            yield where, [None if ratio is None else _cell_of(ratio) for ratio in ratios]


def _row(lane: Lane, result: CaseResult, contender: str) -> Row:
    cells = [_median(result, contender, metric) for metric in lane.metrics]
    return Row(contender, cells, _ratio(lane, result, contender), stats.errors(result, contender))


def _median(result: CaseResult, contender: str, metric: str) -> Cell | None:
    middle = stats.median(result, contender, metric)
    bounds = stats.spread(result, contender, metric)
    if middle is None or bounds is None:
        return None
    return Cell(number(middle), " … ".join(map(number, bounds)))


def _ratio(lane: Lane, result: CaseResult, contender: str) -> Cell | None:
    against = stats.best(result, lanes.serves_own(result), lane.rate)
    ratio = against and stats.paired_ratio(result, contender, against, lane.rate)
    if not ratio:
        return None
    if contender == against:
        return Cell("1", "baseline")
    return _cell_of(ratio)


def _cell_of(ratio: stats.Ratio) -> Cell:
    return Cell(number(ratio.median), f"{number(ratio.low)} … {number(ratio.high)}")


def target_rows(run: Run) -> Iterator[TargetRow]:
    """Every target of the run, in the plan's order."""
    for verdict in stats.verdicts(run):
        target, ratio = verdict.target, verdict.ratio
        bounds = []
        if target.at_least is not None:
            bounds.append(f"≥ {number(target.at_least)}")
        if target.at_most is not None:
            bounds.append(f"≤ {number(target.at_most)}")
        yield TargetRow(
            title=target.title,
            case=verdict.case,
            metric=METRICS[target.metric].title,
            ours="–" if verdict.ours is None else number(verdict.ours),
            other="–" if verdict.other is None else number(verdict.other),
            against=verdict.against or ("" if target.is_absolute else "–"),
            ratio="–" if ratio is None else number(ratio.median),
            spread="" if ratio is None else f"{number(ratio.low)} … {number(ratio.high)}",
            target=", ".join(bounds),
            outcome=OUTCOMES[verdict.is_met],
        )


def behind_rows(run: Run) -> Iterator[dict[str, str]]:
    """Points where the best of Serve's own is better than serve_grpc."""
    for point in lanes.behind(run):
        ratio = point.ratio
        yield {
            "case": point.result.case.id,
            "metric": METRICS[point.metric].title,
            "against": point.against,
            "ratio": number(ratio.median),
            "spread": f"{number(ratio.low)} … {number(ratio.high)}",
        }


def error_rows(run: Run) -> Iterator[dict[str, object]]:
    """Every reason why a window has no number, once for each case and contender."""
    for result in run.cases:
        for name in dict.fromkeys(sample.contender for sample in result.samples):
            for text in stats.errors(result, name):
                rounds = sum(s.contender == name and s.error == text for s in result.samples)
                yield {
                    "case": result.case.id,
                    "contender": name,
                    "rounds": rounds,
                    "text": text,
                }


def _growth_cells(series: dict[str, object], places: tuple[float, ...]) -> list[str]:
    values = series["values"]
    assert isinstance(values, dict)
    return [f"{number(values[place])} {series['unit']}".strip() for place in places]
