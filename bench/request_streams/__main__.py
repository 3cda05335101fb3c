"""The command: `python -m bench.request_streams [--rounds N] [--default-flags]`.

Uploads, ping-pong and relays with streams as arguments, beside what is done without them, in turns.
All on this machine, with throughput flags unless it is said otherwise. Takes about two minutes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import click

from bench.plan.contenders import BY_REFERENCE, OURS, OVER_GRPC, serves
from bench.workers.groups import SERVE_FLAGS

# Ray and Serve read these when they are imported; processes of the cluster inherit them.
os.environ.update(SERVE_FLAGS["default" if "--default-flags" in sys.argv else "throughput"])

BEST = (BY_REFERENCE, *serves("cloudpickle"))
"""Serve's own, of which the better one counts."""
Rates = dict[str, float]
FIRSTS = "first item through a relay of three hops"
UNREAD = "memory of an upload of 20 KB chunks that is not read, MiB"
CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    # What, over what it is divided, and the measurements: a name and a method of the caller.
    (
        "50 uploads of 100 chunks of 20 KB, chunks/s",
        "best of Serve's, a call for each chunk",
        [(f"{who}, in calls", "uploads_in_calls") for who in BEST]
        + [(OURS, "uploads"), (OVER_GRPC, "uploads")],
    ),
    (
        "ping-pong of 100 B, one stream, round trips/s",
        "grpc.aio alone",
        [("bare stream", "bare_pings"), (OURS, "pings"), (OVER_GRPC, "pings")],
    ),
    (
        "100 relays of 1,000 tokens through three hops, tokens/s",
        "yielded again by hand",
        [
            (f"{OURS}, by hand", "relays_by_hand"),
            (f"{OURS}, nested calls", "nested"),
            (OURS, "relays"),
            (f"{OVER_GRPC}, by hand", "relays_by_hand"),
            (f"{OVER_GRPC}, nested calls", "nested"),
            (OVER_GRPC, "relays"),
        ],
    ),
]


Seen = tuple[dict[str, list[Rates]], dict[str, list[float]], dict[str, list[tuple[float, float]]]]


async def _measure(rounds: int, only: str) -> Seen:
    """What each round saw: rates by case and name; first items and memory by carrier."""
    from bench.request_streams.cluster import Callers

    callers = Callers()
    rates: dict[str, list[Rates]] = {}
    firsts: dict[str, list[float]] = {}
    unread: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for what, _, measurements in _chosen(only):
            seen = {name: await callers.measure(name, how) for name, how in measurements}
            if number:  # the first round warms up
                rates.setdefault(what, []).append(seen)
        for contender in (OURS, OVER_GRPC) if only in FIRSTS else ():
            relayed_s, lone_s = await callers.measure(contender, "first_items")
            if number:
                firsts.setdefault(contender, []).append(relayed_s / lone_s)
        for contender in (OURS, OVER_GRPC) if only in UNREAD else ():
            held_mib = await callers.measure(contender, "unread")
            if number:
                unread.setdefault(contender, []).append(tuple(held_mib))
    return rates, firsts, unread


def _chosen(only: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    return [case for case in CASES if only in case[0]]


def _is_floor(what: str, name: str, carrier: str) -> bool:
    """Whether a measurement is what others of this carrier are divided by."""
    if "uploads" in what:
        return name.endswith("in calls")
    if "ping" in what:
        return name == "bare stream"
    return name == f"{carrier}, by hand"


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", default="", help="Cases whose name contains this.")
@click.option("--default-flags", is_flag=True, help="Serve's default flags.")
def main(rounds: int, only: str, default_flags: bool) -> None:
    from bench.request_streams.cluster import one_node

    with one_node():
        rates, firsts, unread = asyncio.run(_measure(rounds, only))
    median: Callable[[Any], float] = statistics.median
    for what, over, _ in _chosen(only):
        click.echo(f"\n{what}; ratio to: {over}")
        for name in rates[what][0]:
            carrier = OVER_GRPC if name.startswith(OVER_GRPC) else OURS
            ratios = sorted(
                seen[name] / max(v for n, v in seen.items() if _is_floor(what, n, carrier))
                for seen in rates[what]
            )
            click.echo(
                f"  {name} | {median(seen[name] for seen in rates[what]):,.0f} | "
                f"{median(ratios):.2f} ({ratios[0]:.2f} ... {ratios[-1]:.2f})"
            )
    if firsts:
        click.echo(f"\n{FIRSTS}; ratio to: three lone calls")
    for contender, ratios in firsts.items():
        low, high = min(ratios), max(ratios)
        click.echo(f"  {contender} | {median(ratios):.2f} ({low:.2f} ... {high:.2f})")
    if unread:
        click.echo(f"\n{UNREAD}; a window is 1")
    for contender, held_mib in unread.items():
        caller, replica = (median(side) for side in zip(*held_mib, strict=True))
        click.echo(f"  {contender} | caller {caller:.2f} | replica {replica:.2f}")


if __name__ == "__main__":
    main()
