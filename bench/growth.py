"""How costs grow: pick and bookkeeping with replicas, memory and sockets with connections.

    python -m bench.growth

prints one JSON object a line: "name", "x" (replicas, connections), "value", "unit". Takes about
half a minute; times that end in µs or ms are CPU time except where a name says "all".
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from bench.growth_connections import measure_connections
from bench.growth_routing import REPLICAS, Row, measure_routing

__all__ = ["measure_growth"]


def measure_growth() -> list[Row]:
    """Every row: those of routing for each number of replicas, then those of connections."""
    return list(_measure())


def _measure() -> Iterator[Row]:
    for replicas in REPLICAS:
        yield from measure_routing(replicas)
    yield from measure_connections()


@click.command(help=__doc__)
def main() -> None:
    for row in _measure():
        click.echo(json.dumps({**row, "value": round(row["value"], 4)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
