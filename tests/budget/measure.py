"""Prints the budgets and what is used of them; with a name, which code uses it.

python -m tests.budget.measure
python -m tests.budget.measure "caller session: reply received"
"""

from __future__ import annotations

import platform

import click
from rich.console import Console
from rich.table import Table

from tests.budget.budgets import BUDGETS, MAX_RATIO, Budget, measure_ratio


@click.command(help=__doc__)
@click.argument("name", required=False, type=click.Choice([budget.name for budget in BUDGETS]))
def main(name: str | None) -> None:
    if name is None:
        table = _all_budgets()
    else:
        table = _where(next(budget for budget in BUDGETS if budget.name == name))
    Console(width=100).print(table)


def _all_budgets() -> Table:
    table = Table(title=f"CPython {platform.python_version()}", title_justify="left")
    table.add_column("instructions per call")
    for heading in ("measured", "with 15 % more", "allowed"):
        table.add_column(heading, justify="right")
    for budget in BUDGETS:
        used = budget.measure()
        table.add_row(budget.name, f"{used:.1f}", f"{used * 1.15:.0f}", str(budget.allowed))
    ratio = measure_ratio()
    table.add_section()
    table.add_row("time of a batch / reference loop", f"{ratio:.2f}", "", f"{MAX_RATIO:.2f}")
    return table


def _where(budget: Budget) -> Table:
    table = Table(title=budget.name, title_justify="left")
    table.add_column("code")
    table.add_column("instructions per call", justify="right")
    for code, count in budget.counts().most_common(20):
        where = f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
        table.add_row(where, f"{count / budget.calls:.1f}")
    return table


if __name__ == "__main__":
    main()
