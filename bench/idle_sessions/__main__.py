"""The command: `python -m bench.idle_sessions [--sessions N ...] [--carrier C] [--idle S]`.

What sessions cost that carry no calls: memory of each, and CPU of the process that has them, as the
kernel counts both. Callers and replicas are in processes of their own, without Ray. With the
defaults it takes about five minutes.
"""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from bench.idle_sessions.measure import Row, measure_idle

COLUMNS = ("private KiB each", "RSS KiB each", "CPU, % of a core", "CPU of opening, ms each")


@click.command(help=__doc__)
@click.option("--sessions", default=(500, 1000), multiple=True, show_default=True)
@click.option("--carrier", "carriers", default=("grpc", "local"), multiple=True, show_default=True)
@click.option("--idle", "idle_s", default=30.0, show_default=True, help="Seconds of each window.")
@click.option("--one-way", is_flag=True, help="Only one caller of many replicas, not the reverse.")
def main(
    sessions: tuple[int, ...], carriers: tuple[str, ...], idle_s: float, one_way: bool
) -> None:
    table = Table(title="sessions without calls", title_justify="left")
    for heading in ("carrier", "process"):
        table.add_column(heading)
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for carrier in carriers:
        for count in sessions:
            for callers in (1,) if one_way else (1, count):
                for row in measure_idle(carrier, count, idle_s, callers=callers):
                    table.add_row(*_cells(row))
            table.add_section()
    Console(width=120).print(table)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.carrier,
        row.side,
        f"{row.private_kib:.1f}",
        f"{row.rss_kib:.1f}",
        f"{row.cpu * 100:.2f}",
        f"{row.open_cpu_ms:.2f}",
    )


if __name__ == "__main__":
    main()
