"""What the terminal shows of simulated fleets: a table for each life, a line for each policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

__all__ = ["COLUMNS", "fleet_table"]

COLUMNS = (
    "",
    "sessions",
    "most",
    "busiest",
    "wait ms",
    "p99 ms",
    "p99 of all",
    "rejected",
    "opened",
    "closed",
    "failed",
    "waiting",
)
"""The policy; sessions of a replica, mean and most; load of the busiest replica to the mean;
waiting for a slot, and its p99 to that of all to all; rejections for each call; sessions that were
opened and closed; calls that failed, and that still wait."""


def fleet_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """One life of a fleet."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
