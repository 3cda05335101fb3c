"""The documentation's page of measurements, docs/benchmarks.md, and its pictures, from a run.

`python -m bench.docs_page` writes it. The page is never edited by hand, so every number on it is of
the run that it names.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bench.results.costs import costs_of, without_costs
from bench.results.doors import doors_of, without_doors
from bench.results.run import Run
from bench.show import lanes, pictures
from bench.show.report import behind_rows, environment, error_rows, target_rows
from bench.show.wording import caveats, facts

__all__ = ["DOCS", "PAGE", "PICTURES", "SHOWN", "write_docs"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = "benchmarks.md"
PICTURES = "benchmarks"
SHOWN = (
    "payload-numpy-echo-throughput-optimised",
    "in-flight-default",
    "streams-async-generator-default",
    "http-proxy-haproxy-default",
    "cpu",
    "growth-10000",
)
"""The pictures that the page has, by their slugs. Few: a new run changes every line of them."""
MAX_ROWS = 8
"""Of the lists that a run can make long; the page is to stay short, and the report has all."""


def write_docs(run: Run, docs_dir: Path, shown: Collection[str] = SHOWN) -> Path:
    """Write `docs_dir/benchmarks.md` and `docs_dir/benchmarks/*.svg`; return the former's path.

    The same run gives the same bytes.

    Args:
        shown: Slugs of the pictures that the page has, of those that the run gives.
    """
    drawn: list[pictures.Picture] = []

    def told(picture: pictures.Picture | None) -> dict[str, str] | None:
        """A picture's words, with its path if it is shown; None if the run does not give it."""
        if picture is None:
            return None
        if picture.slug not in shown:
            return {"path": "", "alt": picture.alt, "caption": picture.caption}
        drawn.append(picture)
        path = f"{PICTURES}/{picture.slug}.svg"
        return {"path": path, "alt": picture.alt, "caption": picture.caption}

    sections = [
        {
            "section": section,
            "lanes": [
                {"title": lane.title, "picture": told(pictures.of_lane(section, lane))}
                for lane in section.lanes
            ],
        }
        for section in lanes.sections(run)
    ]
    groups = pictures.growth_groups(without_doors(without_costs(run.growth))).items()
    behind: dict[str, list[str]] = {}
    for row in behind_rows(run):
        text = f"{row['metric']}: {row['ratio']} × {row['against']}"
        behind.setdefault(row["case"], []).append(text)
    page = (
        environment()
        .get_template("benchmarks.md.j2")
        .render(
            run=run,
            machine=facts(run.machine),
            caveats=caveats(run),
            targets=list(target_rows(run)),
            behind=[(case, "; ".join(texts)) for case, texts in behind.items()],
            errors=list(error_rows(run)),
            max_rows=MAX_ROWS,
            doors=doors_of(run.growth),
            sections=sections,
            costs=[told(pictures.of_cpu(run)), told(pictures.of_parts(costs_of(run.growth)))],
            growth=[told(pictures.of_growth(places, group)) for places, group in groups],
        )
    )
    pictures.write(drawn, docs_dir / PICTURES)
    path = docs_dir / PAGE
    path.write_text(page)
    return path
