"""The command that writes docs/benchmarks.md and its pictures from a run; see `show/page.py`.

python -m bench.docs_page bench/out/run.json
"""

from __future__ import annotations

from pathlib import Path

import click

from bench.results.run import Run
from bench.show.page import DOCS, write_docs

__all__ = ["main"]


@click.command(help=__doc__)
@click.argument("run_json", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(run_json: Path) -> None:
    click.echo(f"wrote {write_docs(Run.load(run_json), DOCS)}")


if __name__ == "__main__":
    main()
