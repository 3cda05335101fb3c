"""The command: `python -m bench.grpc_payloads [--beside CHECKOUT]`.

Echoes and uploads NumPy arrays over a gRPC session between two processes of this machine, one in
flight, and prints the p50 and the CPU time of both processes for each call. With another checkout
of the package (that has this bench), both run in turns. Takes a minute on a quiet machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

CASES = [
    (method, size, calls)
    for size, calls in ((1_000_000, 20), (10_000_000, 8), (100_000_000, 2))
    for method in ("echo", "upload")
]


class _Worker:
    """A process that calls, with the package of a checkout."""

    def __init__(self, checkout: Path) -> None:
        self.name = checkout.name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.grpc_payloads.worker"],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def series(self, method: str, size: int, calls: int) -> Any:
        """What so many calls took."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([method, size, calls]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@click.command(help=__doc__)
@click.option("--beside", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=6, show_default=True)
def main(beside: Path | None, rounds: int) -> None:
    checkouts = [*([beside.resolve()] if beside else []), Path.cwd()]
    workers = [_Worker(checkout) for checkout in checkouts]
    found: dict[tuple[str, int, int], list[Any]] = {}
    for number in range(rounds + 1):
        for method, size, calls in CASES:
            for place, worker in enumerate(workers):
                answer = worker.series(method, size, calls)
                if number:  # the first round warms up
                    found.setdefault((method, size, place), []).append(answer)
    click.echo("call | MB | checkout | p50, ms | CPU of caller, replica, ms")
    for (method, size, place), answers in found.items():
        p50 = statistics.median(ms for answer in answers for ms in answer["ms"])
        cpu = [statistics.median(answer["cpu_ms"][end] for answer in answers) for end in (0, 1)]
        click.echo(
            f"{method} | {size // 1_000_000} | {workers[place].name} | {p50:.1f} | "
            f"{cpu[0]:.1f}, {cpu[1]:.1f}"
        )
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
