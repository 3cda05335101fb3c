"""The command: `python -m bench.two_nodes [--rounds N]`.

Echoes and uploads NumPy arrays between replicas on two nodes of a Ray cluster, one call in flight,
by reference and over serve_grpc in turns. Both nodes are on this machine. Prints the p50 of each,
and the median of the rounds' ratios. Takes about two minutes.
"""

from __future__ import annotations

import asyncio
import os
import statistics

import click

from bench.load.window import Window
from bench.plan.contenders import BY_REFERENCE, OVER_GRPC, parse
from bench.workers.groups import LIMIT

# Ray and Serve read these when they are imported; processes of the cluster inherit them.
os.environ.update(LIMIT, RAY_SERVE_THROUGHPUT_OPTIMIZED="1")

CASES = [
    (method, size, calls)
    for size, calls in ((100_000, 20), (1_000_000, 20), (10_000_000, 12), (100_000_000, 4))
    for method in ("echo", "length")
]
NAMES = {"length": "upload"}
CONTENDERS = (BY_REFERENCE, OVER_GRPC)
WINDOW_S, MAX_S = 0.25, 20.0


async def _measure(rounds: int) -> dict[tuple[str, int], list[dict[str, float]]]:
    """The p50 of every round in ms, by contender, for each case."""
    from bench.two_nodes.cluster import Pair

    pairs = {side: Pair(side) for side in ("serve", "serve_grpc")}
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for method, size, calls in CASES:
            window = Window(1, WINDOW_S, min_calls=calls, max_s=MAX_S)
            p50s = {}
            for contender in CONTENDERS:
                pair = pairs[parse(contender).side]
                counted = await pair.measure(contender, method, size, window)
                p50s[contender] = statistics.median(counted.latencies_s) * 1e3
            if number:  # the first round warms up
                found.setdefault((method, size), []).append(p50s)
    return found


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
def main(rounds: int) -> None:
    from bench.two_nodes.cluster import two_nodes

    with two_nodes():
        found = asyncio.run(_measure(rounds))
    click.echo(
        "call | MB | by reference, p50 ms | over gRPC, p50 ms | ratio (smallest ... largest)"
    )
    for (method, size), p50s in found.items():
        theirs, ours = (statistics.median(p50[who] for p50 in p50s) for who in CONTENDERS)
        ratios = sorted(p50[OVER_GRPC] / p50[BY_REFERENCE] for p50 in p50s)
        click.echo(
            f"{NAMES.get(method, method)} | {size / 1e6:g} | {theirs:.2f} | {ours:.2f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} ... {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
