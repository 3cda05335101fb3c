"""The command: `python -m bench.growth`, started by `workers/runner.py`.

It prints one JSON object a line: "name", "x" (replicas, connections), "value", "unit". Takes about
half a minute; times that end in µs or ms are CPU time except where a name says "all".
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from bench.growth.connections import measure_connections
from bench.growth.routing import REPLICAS, Row, measure_routing


def _measure() -> Iterator[Row]:
    """Those of routing for each number of replicas, then those of connections."""
    for replicas in REPLICAS:
        yield from measure_routing(replicas)
    yield from measure_connections()


@click.command(help=__doc__)
def main() -> None:
    for row in _measure():
        click.echo(json.dumps({**row, "value": round(row["value"], 4)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
