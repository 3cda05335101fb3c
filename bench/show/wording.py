"""How pages write metrics, numbers and contenders, and what they say about bias.

One place, so that the report, the page of the documentation, the plots and the comparison use the
same words. Pure: nothing is measured and nothing is drawn here.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.plan.contenders import OVER_GRPC
from bench.results import stats
from bench.results.run import Run

__all__ = [
    "METRICS",
    "SWEEPS",
    "Metric",
    "caveats",
    "duration",
    "facts",
    "number",
    "short",
    "size",
    "spread_of_rounds",
    "transport",
]


@dataclass(frozen=True)
class Metric:
    """How a field of `Sample` is written.

    Attributes:
        title: For headings and axes, with the unit.
        noun: In a sentence, without it.
    """

    title: str
    noun: str


METRICS: dict[str, Metric] = {
    "calls_per_s": Metric("calls/s", "throughput"),
    "tokens_per_s": Metric("tokens/s", "tokens/s"),
    "p50_ms": Metric("p50, ms", "p50"),
    "p99_ms": Metric("p99, ms", "p99"),
    "first_token_p50_ms": Metric("first token p50, ms", "time to first token"),
    "caller_cpu_us": Metric("caller CPU, µs/call", "CPU of the caller"),
    "callee_cpu_us": Metric("callee CPU, µs/call", "CPU of the callee"),
    "fairness": Metric("slowest / fastest caller", "fairness"),
    "large_per_s": Metric("large calls/s", "large calls/s"),
    "memory_before_mib": Metric("memory before, MiB", "memory before"),
    "memory_most_mib": Metric("memory at most, MiB", "memory at most"),
    "memory_left": Metric("memory in the end / before", "memory in the end over before"),
}

SWEEPS: dict[str, tuple[str, str]] = {
    "serializers": (
        "Transports and serializers",
        "A 100-character echo over every transport with every serializer, and the floors: grpc.aio "
        "without Serve, one message per call (bare unary) and batched on a stream (bare stream).",
    ),
    "payload": (
        "Payload",
        "Values of every size, there and back (“upload”: there only). By reference, large arrays "
        "go through Ray's object store; over the local lane, through shared memory. An echo that "
        "returns what it got may be answered with the memory that it came in, over either; a "
        "“changed copy” (x + 1) is new memory at the callee.",
    ),
    "beside": (
        "Small calls beside large ones",
        "Lone 100-character echoes, while the same process echoes a NumPy array of 100 MB with the "
        "same replica, one after another. A slow transport has fewer of them: see large calls/s.",
    ),
    "memory": (
        "Memory",
        "1,000 echoes of a 10 MB NumPy array, one at a time, then a minute without a call: the "
        "memory of caller and callee together, what they share counted once.",
    ),
    "in-flight": ("Calls in flight", "A 100-character echo, from a lone call to a crowd."),
    "streams": (
        "Streams",
        "100 tokens a stream, from an async and from a plain generator. Calls are whole streams.",
    ),
    "sync": (
        "Sync callers",
        "`.result()` in the threads of a driver process. Under the throughput-optimised flags "
        "Serve's own handles refuse it outside an event loop.",
    ),
    "saturated": (
        "A full replica",
        "100 calls in flight on a replica that takes 5 at a time (max_ongoing_requests=5, Serve's "
        "default); “4 callers” are four caller replicas that share the load and compete.",
    ),
    "callers": (
        "Callers",
        "100 calls in flight, shared by several caller replicas, to one callee.",
    ),
    "replicas": (
        "Replicas",
        "One caller, 100 calls in flight, several callee replicas. They all share the machine's "
        "cores, so this shows what the choice costs, not how capacity grows.",
    ),
    "http": (
        "HTTP chain",
        "HTTP requests to A, which calls B, which calls C; the contender is the transport between "
        "them. Proxy and ingress are Serve's own in all cases.",
    ),
    "ray-programs": (
        "Ray's own programs",
        "The benchmark programs that Ray ships in its wheel, unchanged but for decorator and "
        "handle, with smaller sizes: a lone call, batches of 20 calls and of 5 streams of 50 "
        "tokens, each to a replica that takes 5 at a time (Serve's default).",
    ),
}
"""Titles and first sentences of sections."""

LOOP_TEXT = (
    "Load is a closed loop: a worker sends its next call when the last one has ended. A slow "
    "transport is therefore asked less, and latencies with many calls in flight are mostly time "
    "spent waiting in line. No statement about an open arrival process follows."
)
SHARED_TEXT = (
    "Caller, callee and load generator run on one machine and share its cores"
    "{cores}. What the load generator and the handlers use is not there for the transport, and a "
    "noisy neighbour meets whoever is being measured."
)


CARRIERS_TEXT = (
    "serve_grpc takes part twice, in the same rounds: as it comes on one node, over its local lane "
    "(a Unix socket and shared memory), and over gRPC, as between two nodes but without a network, "
    "from callers with SERVE_GRPC_LOCAL=0. What carried a window is looked up, and the wrong one "
    "fails the run. Where nothing else is said, serve_grpc is meant over the lane."
)


def number(value: float) -> str:
    """Three significant digits, or all of them before the point: "0.0123", "2.54", "18,756"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    if digits > 6:
        return f"{value:.2e}"
    return f"{value:,.{digits}f}"


def size(count: float) -> str:
    """Bytes in decimal units: "0 B", "100 B", "10 KB", "1.5 MB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:g} B"


def duration(seconds: float) -> str:
    """Minutes and seconds: "14 min 3 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(text: str, limit: int = 160) -> str:
    """On one line, and cut if it is longer than `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def transport(contender: str) -> str:
    """The family a contender belongs to: "serve" of "serve: orjson (4 callers)"."""
    return re.split(r": | \(", contender, maxsplit=1)[0]


def facts(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """What a run says about its machine, as words and text."""
    return [
        (key.replace("_", " ").replace(" gib", ", GiB"), _flat(machine[key])) for key in machine
    ]


def _flat(value: object) -> str:
    """Nested mappings on one line: "A=1, B=(C=2, D=3)"."""
    if not isinstance(value, dict):
        return f"{value}"
    items = ((name, _flat(item), isinstance(item, dict)) for name, item in value.items())
    return ", ".join(f"{name}=({text})" if deep else f"{name}={text}" for name, text, deep in items)


def spread_of_rounds(run: Run) -> tuple[float, float] | None:
    """How far rounds of the same contender lie apart, (max - min) / median of the throughput.

    Returns:
        The middle and the worst tenth over all cases and contenders that have two rounds or more,
        or None without any.
    """
    found = sorted(_spreads(run))
    if not found:
        return None
    return statistics.median(found), found[min(len(found) - 1, int(len(found) * 0.9))]


def _spreads(run: Run) -> Iterator[float]:
    for result in run.cases:
        for contender in result.case.contenders:
            rounds = stats.values(result, contender, "calls_per_s").values()
            if len(rounds) > 1 and statistics.median(rounds) > 0:
                yield (max(rounds) - min(rounds)) / statistics.median(rounds)


def caveats(run: Run) -> list[str]:
    """What is biased or noisy in the run: the opening of every page that shows its numbers."""
    cores = run.machine.get("cores")
    texts = [
        "The authors of serve_grpc, one of the contenders, wrote this benchmark and chose its "
        "workloads.",
        SHARED_TEXT.format(cores=f" ({cores})" if cores else ""),
        "Handlers do no work: they return what they were sent. Ratios are upper bounds; with "
        "real work in the handler they shrink towards 1.",
        "Serve's own transports are measured between plain deployments, in processes that never "
        "import serve_grpc. Both sides' processes run all the time; those not measured are idle.",
        "Everything travels within one node, over loopback if not over the lane: no network "
        "latency, loss or bandwidth limit, and no TLS.",
        LOOP_TEXT,
        _serializers(run),
        _noise(run),
    ]
    if any(OVER_GRPC in result.case.contenders for result in run.cases):
        texts.insert(1, CARRIERS_TEXT)
    if run.is_quick:
        texts.append(
            "This is the quick plan: fewer cases, shorter windows, fewer rounds. Use it to see "
            "whether something broke, not to quote."
        )
    if "+dirty" in run.commit:
        texts.append("The measured tree differs from its commit (“+dirty”).")
    return texts


def _serializers(run: Run) -> str:
    names = dict.fromkeys(n for result in run.cases for n in result.case.contenders)
    by_transport: dict[str, list[str]] = {}
    for name in names:
        family, _, rest = name.partition(": ")
        serializer = rest.partition(" ")[0]
        if serializer and serializer not in by_transport.setdefault(family, []):
            by_transport[family].append(serializer)
    listed = "; ".join(f"{family}: {', '.join(found)}" for family, found in by_transport.items())
    limits = [result.case.workload.get("max_message_bytes", 0) for result in run.cases]
    limit = "The message limit is Serve's default of 4 MiB."
    if limits:
        limit = (
            f"The message limit is raised from 4 MiB to {max(limits) // 2**20} MiB, for all alike."
        )
    return (
        "The baseline is the best of Ray by reference and Serve's own gRPC (“serve”), under the "
        "same flags, taken case by case; ratios use serve_grpc with its default serializer "
        f"where it was measured. Serializers measured: {listed or 'none can be chosen'}. {limit}"
    )


def _noise(run: Run) -> str:
    counts = [
        len({sample.round for sample in result.samples}) for result in run.cases if result.samples
    ]
    if not counts:
        return "Nothing was measured."
    rounds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    text = (
        f"Numbers are medians of {rounds} round{'s' if rounds != '1' else ''}; ratios are formed "
        "inside each round, and their median is given."
    )
    spreads = spread_of_rounds(run)
    if spreads is None:
        return text + " With one round nothing can be said about noise."
    middle, worst = spreads
    return (
        f"{text} Rounds of the same contender lie {middle:.0%} apart in the middle case and "
        f"{worst:.0%} or more in the worst tenth (throughput, largest minus smallest over median): "
        "differences of that size mean nothing."
    )
