"""The command: `python -m bench.shared_memory`.

It prints a table: one row a step, one column a size, least and median CPU time in microseconds.
Takes about a minute.
"""

from __future__ import annotations

import platform
from pathlib import Path

import click

from bench.shared_memory.steps import KIB, SIZES, measure

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@click.command(help=__doc__)
def main() -> None:
    huge = HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else "unknown"
    click.echo(f"Linux {platform.release()}, Python {platform.python_version()}")
    click.echo(f"huge pages for shared memory: {huge}")
    columns = [
        [(r.name, f"{_us(r.least_us)} / {_us(r.median_us)}") for r in measure(s)] for s in SIZES
    ]
    click.echo(" | ".join(["step, µs", *(_named(size) for size in SIZES)]))
    for cells in zip(*columns, strict=True):
        click.echo(" | ".join([cells[0][0], *(figure for _, figure in cells)]))


def _named(size: int) -> str:
    kib = size // KIB
    return f"{kib} KiB" if kib < KIB else f"{kib // KIB} MiB"


def _us(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
