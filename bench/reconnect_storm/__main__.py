"""The command: `python -m bench.reconnect_storm [--callers N] [--replicas N] [--carrier C]`.

All sessions are dialled at once; then the replicas are killed, and come back at the same addresses,
at once and after a while. When the first call over each was answered, and what kept sessions from
it. With the defaults a thousand callers come to one replica; `--callers 1 --processes 1 --replicas
500` is a node that one caller loses.
"""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from bench.reconnect_storm.measure import Storm, measure_storms

SHARES = {"first": 0.0, "half": 0.5, "99 %": 0.99, "last": 1.0}
MORE = ("failures", "reads of the secret", "replicas' CPU, s", "callers' CPU, s")


@click.command(help=__doc__)
@click.option("--callers", default=1000, show_default=True)
@click.option("--processes", default=4, show_default=True, help="That the callers are in.")
@click.option("--replicas", default=1, show_default=True)
@click.option("--carrier", "carriers", default=("grpc", "local"), multiple=True, show_default=True)
@click.option("--away", "aways_s", default=(0.0, 3.0), multiple=True, show_default=True)
def main(
    callers: int,
    processes: int,
    replicas: int,
    carriers: tuple[str, ...],
    aways_s: tuple[float, ...],
) -> None:
    table = Table(title=f"{callers} callers of {replicas} replicas", title_justify="left")
    for heading in ("carrier", "sessions"):
        table.add_column(heading)
    for heading in (*(f"{share} answered, s" for share in SHARES), *MORE):
        table.add_column(heading, justify="right")
    reasons = []
    for carrier in carriers:
        for storm in measure_storms(carrier, callers, processes, aways_s, replicas=replicas):
            table.add_row(*_cells(storm))
            reasons += [
                f"{carrier}, {storm.what}: {count} × {reason[:150]}"
                for reason, count in storm.troubles.most_common(5)
            ]
    console = Console(width=150)
    console.print(table)
    for reason in reasons:
        console.print(reason, markup=False)


def _cells(storm: Storm) -> tuple[str, ...]:
    last = len(storm.times_s) - 1
    return (
        storm.carrier,
        storm.what,
        *(f"{storm.times_s[int(share * last)]:.2f}" for share in SHARES.values()),
        str(storm.troubles.total()),
        str(storm.reads),
        f"{storm.replicas_cpu_s:.2f}",
        f"{storm.callers_cpu_s:.2f}",
    )


if __name__ == "__main__":
    main()
