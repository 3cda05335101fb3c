"""The command that writes docs/benchmarks.md and its pictures from a run; see `show/page.py`.

python -m bench.docs_page bench/out/run.json [LATER.json ...]

With later runs, of `--only memory` for example, their cases are added, or take the place of those
of the same id; the page names the commands of all.
"""

from __future__ import annotations

from pathlib import Path

import click

from bench.results.run import Run
from bench.show.page import DOCS, write_docs

__all__ = ["main"]


@click.command(help=__doc__)
@click.argument("run_json", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("later", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(run_json: Path, later: tuple[Path, ...]) -> None:
    run = Run.load(run_json)
    for path in later:
        run = run.and_then(Run.load(path))
    click.echo(f"wrote {write_docs(run, DOCS)}")


if __name__ == "__main__":
    main()
