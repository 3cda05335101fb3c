"""`make demo`: deploy the search service, ask it over HTTP, check what it says, compare transports.

The exit status is not 0 if an answer differs from what the same code computes in this process, or
if the whole takes longer than LIMIT_S. Ray and Serve run on this machine only, under a cluster of
their own, and are shut down whatever happens.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import httpx
import ray
from ray import serve
from rich.console import Console
from rich.progress import track
from rich.table import Table

import serve_grpc

from . import app, bm25, corpus
from .meter import TRANSPORTS, Meter, Sample, Transport

LIMIT_S = 120
ROUNDS = 5
WINDOW_S = 0.8
WARM_UP_S = 0.4
LOADS = (1, 100)
QUERIES = ("gRPC stream per replica", "which Python versions", "retry", "zyxwvut")

console = Console(highlight=False)


def main() -> int:
    """Run the demo; return the exit status."""
    passages = corpus.load()
    with time_limit(LIMIT_S):
        try:
            with console.status("starting Ray and Serve, deploying the applications ..."):
                url = deploy(passages)
            ask(url, passages)
            samples = measure()
        finally:
            with console.status("shutting down ..."):
                ray.shutdown()  # the cluster is ours alone: Serve and its replicas go with it
    report(samples)
    return 0


def deploy(passages: list[corpus.Passage]) -> str:
    """Start a local Ray with Serve and both applications; return the service's URL."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve_grpc.run(app.build(passages), name="search", route_prefix="/")
    serve.run(Meter.bind("search"), name="meter", route_prefix=None)
    return f"http://127.0.0.1:{port}"


def ask(url: str, passages: list[corpus.Passage]) -> None:
    """Send real requests, print the answers, and compare them with an index made here.

    Raises:
        RuntimeError: an answer was wrong.
    """
    index = bm25.Bm25(f"{passage.heading}\n{passage.text}" for passage in passages)
    console.print(f"\nA search service over {len(passages)} passages of this project's text:")
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        for query in QUERIES:
            expected = index.rank(bm25.tokenise(query), 3)
            answer = http.get("/search", params={"q": query}).raise_for_status().json()
            console.print(f"\n[bold]GET /search?q={query}[/]")
            for hit in answer["hits"]:
                show(f"{hit['score']:6.3f}  {hit['source']}: {hit['heading']}")
            if not expected:
                show("nothing found")
            found = [(hit["source"], hit["score"]) for hit in answer["hits"]]
            check(query, found, [(passages[number].source, score) for number, score in expected])

        query = QUERIES[0]
        expected = index.rank(bm25.tokenise(query), 5)
        console.print(f"\n[bold]GET /snippets?q={query}&k=5[/]  (streamed)")
        lines = []
        with http.stream("GET", "/snippets", params={"q": query, "k": 5}) as response:
            for line in response.raise_for_status().iter_lines():
                lines.append(line)
                show(line)
        check(
            query, [line.split(":")[0] for line in lines], [passages[n].source for n, _ in expected]
        )
        check("marks", all("«" in line for line in lines), True)
        check("no query", http.get("/search").status_code, 400)


def show(line: str) -> None:
    """Print one line of an answer as it is, cut at the width of the terminal."""
    console.print(f"  {line}", markup=False, overflow="ellipsis", no_wrap=True)


def check(what: str, found: object, expected: object) -> None:
    """Raise RuntimeError unless `found` is as expected."""
    if found != expected:
        raise RuntimeError(f"{what}: the service said {found!r}, expected {expected!r}")


def measure() -> dict[tuple[Transport, int], Sample]:
    """Return the medians over the rounds, by transport and number of calls in flight.

    The transports take turns inside each round, so that a slow spell of the machine meets all.
    """
    meter = serve.get_deployment_handle("Meter", app_name="meter")
    cells = [(transport, in_flight) for in_flight in LOADS for transport in TRANSPORTS]
    windows = [(cell, WARM_UP_S, False) for cell in cells]
    windows += [(cell, WINDOW_S, True) for _ in range(ROUNDS) for cell in cells]
    samples: dict[tuple[Transport, int], list[Sample]] = {cell: [] for cell in cells}
    console.print()
    for cell, seconds, counts in track(windows, "measuring one inner call", console=console):
        sample = meter.measure.remote(*cell, seconds).result(timeout_s=30)
        if counts:
            samples[cell].append(sample)
    return {
        cell: Sample(
            statistics.median(sample.p50_ms for sample in taken),
            statistics.median(sample.calls_per_s for sample in taken),
        )
        for cell, taken in samples.items()
    }


def report(samples: dict[tuple[Transport, int], Sample]) -> None:
    """Print the table, and below it what its numbers depend on."""
    table = Table(title="One inner call, Index.tokenise, from replica to replica")
    table.add_column("", no_wrap=True)
    for transport in TRANSPORTS:
        table.add_column(transport, justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    for in_flight in LOADS:
        values = [samples[transport, in_flight].p50_ms for transport in TRANSPORTS]
        gain = min(values[:2]) / values[2]
        row = [f"{value:,.2f}" for value in values]
        table.add_row(f"p50 ms, {in_flight} in flight", *row, f"{gain:.1f}×")
    for in_flight in LOADS:
        values = [samples[transport, in_flight].calls_per_s for transport in TRANSPORTS]
        gain = values[2] / max(values[:2])
        row = [f"{value:,.0f}" for value in values]
        table.add_row(f"calls/s, {in_flight} in flight", *row, f"{gain:.1f}×")
    console.print()
    console.print(table)
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "grpcio", "protobuf"))
    flags = [f"{name}={value}" for name, value in os.environ.items() if "RAY_SERVE_" in name]
    flags = flags or ["all at their defaults"]
    console.print(
        "Gain: serve_grpc against the better of Serve's two. "
        f"{os.cpu_count()} cores, CPython {platform.python_version()}, {packages}. Medians of "
        f"{ROUNDS} interleaved rounds of {WINDOW_S} s. Serve's flags: {', '.join(flags)}; "
        "access log on. Caller, callee and everything else share one noisy machine: read the "
        "ratios, not the absolute numbers.",
        style="dim",
    )


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in this, the main, thread after `seconds`."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the demo took longer than {seconds} s")

    signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    sys.exit(main())
