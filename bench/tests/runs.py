"""A made-up run of the benchmark: every kind of sweep, a failing contender, missing metrics.

The numbers are of no measurement. They come from a seed, so that the same call gives the same run.
"""

from __future__ import annotations

import random
from typing import Any

from bench.results.run import Case, CaseResult, Flags, Run, Sample, Target

SERVES = ("by reference", "serve: cloudpickle", "serve: orjson")
OURS = "serve_grpc: cloudpickle"
OVER_GRPC = "serve_grpc over gRPC: cloudpickle"
FAILURE = "RuntimeError: no <b>result</b> | under these flags"
CALLS_PER_S = {"by reference": 900.0, "serve": 2_000.0, "serve_grpc": 18_000.0}
CALLS_PER_S["serve_grpc over gRPC"] = 12_000.0

TARGETS = (
    Target("calls_per_s", OURS, SERVES, "7 × throughput", at_least=7),
    Target("p50_ms", OURS, SERVES, "p50 a hundredth", at_most=0.01),
    Target("tokens_per_s", OURS, SERVES, "tokens of a case without", at_least=2),
)


def case(sweep: str, axis: str, x: float, flags: Flags = "default", **workload: Any) -> Case:
    """A case of the usual contenders."""
    extra = (f"{OURS} (4 callers)",) if sweep == "saturated" else ()
    return Case(
        id=f"{sweep}/{flags}/{x:g}{''.join(f'-{value}' for value in workload.values())}",
        sweep=sweep,
        flags=flags,
        axis=axis,
        x=x,
        workload={"kind": "unary", "in_flight": 100, **workload},
        contenders=(*SERVES, OURS, OVER_GRPC, *extra),
        targets=TARGETS if (sweep, x) == ("payload", 100) else (),
    )


def cases() -> list[Case]:
    """All sweeps: lines with and without 0, bars, lone cases."""
    found = [case("payload", "payload", x, series="bytes") for x in (0, 100, 10_000, 100_000_000)]
    found += [case("in-flight", "in flight", x, flags="throughput") for x in (1, 10, 100)]
    found += [case("streams", "in flight", x, kind="stream") for x in (1, 100)]
    found += [case("replicas", "replicas", x) for x in (1, 2, 4, 8)]
    found += [case("http", "", 32, proxy=proxy) for proxy in ("haproxy", "python")]
    found += [case("saturated", "", 100), case("brand-new", "depth", 3)]
    return found


def samples(
    one: Case, rng: random.Random, rounds: int, noise: float, factor: dict[str, float]
) -> list[Sample]:
    """Windows of every contender; `factor` makes those of one quicker or slower."""
    found = []
    for number in range(rounds):
        for name in one.contenders:
            if one.sweep == "http" and name == "serve: orjson":
                found.append(Sample(name, number, error=FAILURE))
                continue
            transport = name.split(": ")[0].split(" (")[0]
            rate = (
                CALLS_PER_S[transport] * factor.get(name, 1.0) * rng.uniform(1 - noise, 1 + noise)
            )
            rate /= 1 + one.x / 1e5 if one.axis == "payload" else 1
            p50_ms = one.workload["in_flight"] / rate * 1e3
            is_stream = one.workload["kind"] == "stream"
            has_cpu = one.sweep != "replicas"
            found.append(
                Sample(
                    name,
                    number,
                    calls_per_s=rate,
                    p50_ms=p50_ms,
                    p99_ms=p50_ms * 2,
                    tokens_per_s=rate * 100 if is_stream else None,
                    first_token_p50_ms=p50_ms / 3 if is_stream else None,
                    caller_cpu_us=6e5 / rate if has_cpu else None,
                    callee_cpu_us=5e5 / rate if has_cpu else None,
                    calls=round(rate),
                )
            )
    return found


def growth() -> list[dict[str, Any]]:
    """Rows of growth, over two sets of places and at a single one, and two costs."""
    rows: list[dict[str, Any]] = [
        {"name": "pick", "x": x, "value": 1.5, "unit": "µs"} for x in (1, 100, 10_000)
    ]
    rows += [{"name": "open", "x": x, "value": 1.0 * x, "unit": "ms"} for x in (1, 500)]
    rows += [{"name": "threads", "x": x, "value": 14, "unit": ""} for x in (1, 500)]
    rows.append({"name": "server: memory", "x": 611, "value": 88.0, "unit": "KiB"})
    for side, value in (("caller", 0.7), ("replica", 12.0)):
        row = {"name": "encode, 32 requests", "x": 1, "value": value, "unit": "µs"}
        rows.append({**row, "part": "codec", "side": side})
    for x, value, unit in ((1, 0.45, "ms"), (100, 23_456.0, "calls/s")):
        row = {"name": f"over TLS {unit}", "x": x, "value": value, "unit": unit}
        rows.append({**row, "door": "session, mutual TLS"})
    return rows


def new_run(
    *,
    seed: int = 1,
    rounds: int = 5,
    noise: float = 0.02,
    factor: dict[str, float] | None = None,
    only: str = "",
    **fields: Any,
) -> Run:
    """A run; `noise` is the largest share by which a round is off, `only` a sweep."""
    rng = random.Random(seed)
    chosen = [one for one in cases() if only in ("", one.sweep)]
    values: dict[str, Any] = {
        "machine": {"cpu": "Example & Co", "cores": 2, "load_before": 0.1, "environment": {"A": 1}},
        "versions": {"python": "3.11.7", "ray": "2.60.0"},
        "commit": "0123456789abcdef",
        "command": "python -m bench",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 801.0,
        "is_quick": False,
        "cases": [CaseResult(c, samples(c, rng, rounds, noise, factor or {})) for c in chosen],
        "growth": growth(),
    }
    return Run(**{**values, **fields})
