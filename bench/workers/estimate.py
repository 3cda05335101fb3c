"""How long cases will take, roughly, for the list of cases and the progress bar.

The rates are what a 2-core machine gave; they size a wait, and no result depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.load.closed_loop import DRAIN_S
from bench.load.window import RAMP, Window
from bench.plan.contenders import parse
from bench.plan.ray_programs import KIND as RAY_PROGRAM
from bench.results.run import Case

__all__ = ["COSTS_S", "DOORS_S", "GROWTH_S", "START_S", "case_s", "window_s"]

START_S = 15.0
"""Starting Ray and Serve, deploying, and the end, for each set of flags."""
GROWTH_S = 40.0
COSTS_S = 20.0
DOORS_S = 22.0
OVERHEAD_S = 0.03
WARM_UP_S = 0.15
HTTP_OVERHEAD_S = 0.5
RAY_OVERHEAD_S = 0.4


@dataclass(frozen=True)
class _Speed:
    """Of a transport: a lone small call, many of them, bytes there and back, stream items."""

    alone_s: float
    calls_per_s: float
    bytes_per_s: float
    tokens_per_s: float
    saturated_per_s: float


SPEEDS = {
    "by reference": _Speed(0.003, 700, 2e9, 3e3, 60),
    "serve": _Speed(0.0015, 1600, 1e8, 1.3e4, 900),
    "serve_grpc": _Speed(0.0003, 20_000, 2e9, 2e5, 12_000),
    "serve_grpc over gRPC": _Speed(0.0006, 15_000, 2e8, 2e5, 10_000),
    "bare unary": _Speed(0.0005, 6000, 2e8, 1e5, 6000),
    "bare stream": _Speed(0.0003, 100_000, 2e8, 1e5, 100_000),
}


def case_s(case: Case, rounds: int, seconds: float) -> float:
    """Seconds for a case, with windows of `seconds`."""
    rounds = min(rounds, case.workload.get("rounds", rounds))
    return sum(
        rounds * window_s(case, contender, seconds) + WARM_UP_S for contender in case.contenders
    )


def window_s(case: Case, contender: str, seconds: float) -> float:
    """Seconds for one window of `seconds` and what belongs to it."""
    load, who = case.workload, parse(contender)
    if load["kind"] == "http":
        return float(load["window_s"]) + HTTP_OVERHEAD_S
    if load["kind"] == RAY_PROGRAM:
        return seconds + RAY_OVERHEAD_S
    if load["kind"] == "memory":
        return float(load["idle_s"] + load["calls"] / _rate(case, SPEEDS[who.transport]))
    seconds *= load.get("share", 1)
    if "beside" in load:
        large_s = load["beside"]["size"] / SPEEDS[who.transport].bytes_per_s
        return min(load["max_s"], seconds * (1 + RAMP) + large_s) + 2 * large_s + OVERHEAD_S
    if load.get("callers", 1) > 1 or (who.callers or 1) > 1:
        return 2 * seconds * (1 + RAMP) + OVERHEAD_S
    rate = _rate(case, SPEEDS[who.transport])
    wave_s = load["in_flight"] / rate
    ramp_s = max(RAMP * seconds, wave_s) if load.get("ramp", True) else 0.0
    counted_s = max(seconds, load.get("min_calls", Window.min_calls) / rate)
    max_s = load.get("max_s", Window.max_s)
    drain_s = min(DRAIN_S, wave_s) if load["in_flight"] > 1 else 0
    return min(max_s, ramp_s) + min(max_s, counted_s) + drain_s + OVERHEAD_S


def _rate(case: Case, speed: _Speed) -> float:
    load = case.workload
    if load["kind"] == "stream":
        return speed.tokens_per_s / load["size"]
    rate = min(speed.calls_per_s, load["in_flight"] / speed.alone_s)
    if load.get("max_ongoing_requests", load["in_flight"]) < load["in_flight"]:
        rate = speed.saturated_per_s
    return 1 / (1 / rate + load["size"] / speed.bytes_per_s)
