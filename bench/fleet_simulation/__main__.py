"""Simulate fleets of callers and replicas that know of each other in several ways.

Prints a table: for each life of a fleet and each way, the sessions of a replica, how much busier
the busiest one is than the mean, how long calls waited for a slot, and how many sessions were
opened and closed after the warm-up. A million calls take about two minutes.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import click
from rich.console import Console

from bench.fleet_simulation.fleet import SUBSET_SIZE, simulate
from bench.fleet_simulation.measured import Measured
from bench.fleet_simulation.policies import POLICIES
from bench.fleet_simulation.scenarios import SCENARIOS, Scenario
from bench.show.fleet_table import COLUMNS, fleet_table

SVG = click.Path(dir_okay=False, path_type=Path)


def _chosen(only: tuple[str, ...], calls: int | None, smaller: int) -> list[Scenario]:
    chosen = [
        scenario
        for scenario in SCENARIOS
        if not only or any(fnmatch(scenario.name, pattern) for pattern in only)
    ]
    if not chosen:
        names = ", ".join(scenario.name for scenario in SCENARIOS)
        raise click.UsageError(f"no life has such a name; there are: {names}")
    chosen = [replace(one, calls=calls) if calls else one for one in chosen]
    return [one.smaller(smaller, one.calls) if smaller > 1 else one for one in chosen]


def _cells(run: Measured, whole: Measured | None) -> tuple[str, ...]:
    """What the table's columns say of a run; `whole` is the same life all to all."""
    wait_ms = run.wait_ms(0.99)
    ratio = ""
    if whole is not None and whole.wait_ms(0.99):
        ratio = f"{wait_ms / whole.wait_ms(0.99):.2f} ×"
    return (
        run.policy,
        f"{run.mean_sessions:.1f}",
        f"{run.most_sessions:,}",
        f"{run.busiest:.2f} ×",
        f"{run.mean_wait_ms:.2f}",
        f"{wait_ms:.2f}",
        ratio,
        f"{run.rejected / run.calls:.3f}",
        f"{run.opened:,}",
        f"{run.closed:,}",
        f"{run.failed:,}",
        f"{run.waiting:,}",
    )


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="NAME", help="Lives of this name (* allowed).")
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice(list(POLICIES)), help="Only these."
)
@click.option("--calls", type=click.IntRange(min=1000), help="In place of a million.")
@click.option("--smaller", default=1, show_default=True, help="So many times fewer of both sides.")
@click.option("--size", default=SUBSET_SIZE, show_default=True, help="SERVE_GRPC_SUBSET_SIZE.")
@click.option("--seed", default=1, show_default=True)
@click.option("--picture", type=SVG, help="Draw the runs of the first life here, as SVG.")
def main(
    only: tuple[str, ...],
    policies: tuple[str, ...],
    calls: int | None,
    smaller: int,
    size: int,
    seed: int,
    picture: Path | None,
) -> None:
    console = Console(highlight=False, width=150)
    runs: dict[str, list[Measured]] = {}
    for scenario in _chosen(only, calls, smaller):
        rows = []
        begin_s = time.monotonic()
        for policy in policies or POLICIES:
            run = simulate(scenario, policy, seed=seed, size=size)
            gc.collect()
            runs.setdefault(scenario.name, []).append(run)
            whole = next((r for r in runs[scenario.name] if r.policy == "all to all"), None)
            rows.append(_cells(run, whole))
        title = (
            f"{scenario.name}: {scenario.callers:,} callers, {scenario.replicas:,} replicas of "
            f"{scenario.slots} slots, {scenario.utilisation:.0%} busy"
        )
        console.print(fleet_table(title, COLUMNS, rows))
        console.print(f"{time.monotonic() - begin_s:.0f} s")
    if picture is not None:
        from bench.show.fleet_plot import draw_fleets  # needs matplotlib, which takes a second

        first = next(iter(runs.values()))
        draw_fleets(picture, [(r.policy, r.sessions[-1], r.loads, list(r.waits_s)) for r in first])


if __name__ == "__main__":
    main()
