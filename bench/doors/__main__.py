"""The command: `python -m bench.doors`, started by `workers/runner.py`.

It prints one JSON object a line, a row of `results/doors.py` each, and takes about 22 seconds.
"""

from __future__ import annotations

import json

import click

from bench.doors.measure import measure_doors


@click.command(help=__doc__)
def main() -> None:
    for row in measure_doors():
        click.echo(json.dumps({**row, "value": round(row["value"], 4)}))


if __name__ == "__main__":
    main()
