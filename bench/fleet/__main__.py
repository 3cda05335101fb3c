"""The command: `python -m bench.fleet`.

It shows look-ups, stalls and callbacks of Serve's real router, and calls beside them.

Serve's own router and ours on it take turns; each figure is the median of the rounds, look-ups and
longest times are the largest.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bench.fleet.real_router import measure_arrival, measure_calls, measure_changes
from bench.stand_ins.serve import serve_log

SIDES = (("Ray Serve", False), ("serve_grpc", True))


@click.command(help=__doc__)
@click.option("--replicas", default=2_000, show_default=True, help="How many are listed.")
@click.option("--rounds", default=3, show_default=True, help="Of each side, in turns.")
@click.option("--changes", default=50, show_default=True, help="Replicas that go, and come.")
@click.option("--lists", default=100, show_default=True, help="While calls are made.")
@click.option("--calls", default=200, show_default=True, help="From one list to the next.")
@click.option("--look-up-ms", default=0.0, show_default=True, help="How long a look-up takes.")
def main(
    replicas: int, rounds: int, changes: int, lists: int, calls: int, look_up_ms: float
) -> None:
    with tempfile.TemporaryDirectory() as directory, serve_log(Path(directory)):
        _measure(replicas, rounds, changes, look_up_ms / 1e3)
        _show_calls(replicas, rounds, lists, calls)


def _measure(replicas: int, rounds: int, changes: int, cost_s: float) -> None:
    arrivals = _in_turns(
        rounds, lambda ours: measure_arrival(replicas, is_ours=ours, cost_s=cost_s)
    )
    _show(f"first list of {replicas}: look-ups", arrivals, "look_ups", max)
    _show(f"first list of {replicas}: longest stall, ms", arrivals, "longest_stall_ms")
    _show(f"first list of {replicas}: done, ms", arrivals, "done_ms")
    _show(f"first list of {replicas}: taken by Serve's, ms", arrivals, "taken_ms")
    changed = _in_turns(rounds, lambda ours: measure_changes(replicas, changes, is_ours=ours))
    _show("one replica less: callback, ms", changed, "less_ms")
    _show("one replica more: callback, ms", changed, "more_ms")
    _show("one less or more: longest callback, ms", changed, "longest_ms", max)
    _show(f"{2 * changes} changes: look-ups", changed, "look_ups", max)


def _in_turns(rounds: int, measure: Callable[[bool], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {side: [] for side, _ in SIDES}
    for _ in range(rounds):
        for side, is_ours in SIDES:
            found[side].append(asyncio.run(measure(is_ours)))
    return found


def _show(
    name: str,
    found: dict[str, list[Any]],
    field: str,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> None:
    values = {side: of([getattr(one, field) for one in ones]) for side, ones in found.items()}
    click.echo(f"{name:<48}" + "".join(f"  {side} {value:>9.2f}" for side, value in values.items()))


def _show_calls(replicas: int, rounds: int, lists: int, calls: int) -> None:
    kinds = {"without lists": False, f"with a list every {calls} calls": True}
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, is_changing in kinds.items():
            measuring = measure_calls(replicas, lists, calls, is_changing=is_changing)
            found[kind].append(asyncio.run(measuring))
    for kind, ones in found.items():
        p50, p99, longest = (
            statistics.median([getattr(one, field) for one in ones])
            for field in ("p50_ms", "p99_ms", "longest_ms")
        )
        click.echo(
            f"calls {kind:<42}  p50 {p50:>6.2f}  p99 {p99:>6.2f}  longest {longest:>6.2f} ms of CPU"
        )


if __name__ == "__main__":
    main()
