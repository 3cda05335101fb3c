"""The documentation's page of measurements, docs/benchmarks.md, and its pictures, from a run.

    python -m bench.docs_page bench/out/run.json

The page is never edited by hand, so every number on it is of the run that it names.
"""

from __future__ import annotations

from pathlib import Path

import click

from bench import lanes, pictures
from bench.costs import costs_of, without_costs
from bench.doors import doors_of, without_doors
from bench.report import behind_rows, environment, error_rows, target_rows
from bench.results import Run
from bench.wording import caveats, facts

__all__ = ["write_docs"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = "benchmarks.md"
PICTURES = "benchmarks"
MAX_ROWS = 10
"""Of the lists that a run can make long; the page is to stay short, and the report has all."""


def write_docs(run: Run, docs_dir: Path) -> Path:
    """Write `docs_dir/benchmarks.md` and `docs_dir/benchmarks/*.svg`; return the former's path.

    The same run gives the same bytes.
    """
    drawn: list[pictures.Picture] = []

    def shown(picture: pictures.Picture | None) -> dict[str, str] | None:
        if picture is None:
            return None
        drawn.append(picture)
        path = f"{PICTURES}/{picture.slug}.svg"
        return {"path": path, "alt": picture.alt, "caption": picture.caption}

    sections = [
        {
            "section": section,
            "lanes": [
                {"title": lane.title, "picture": shown(pictures.of_lane(section, lane))}
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
            costs=[shown(pictures.of_cpu(run)), shown(pictures.of_parts(costs_of(run.growth)))],
            growth=[shown(pictures.of_growth(places, group)) for places, group in groups],
        )
    )
    pictures.write(drawn, docs_dir / PICTURES)
    path = docs_dir / PAGE
    path.write_text(page)
    return path


@click.command(help=__doc__)
@click.argument("run_json", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(run_json: Path) -> None:
    click.echo(f"wrote {write_docs(Run.load(run_json), DOCS)}")


if __name__ == "__main__":
    main()
