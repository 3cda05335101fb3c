"""What serve_grpc has to show, said as `Target`s for the cases of the plan.

A target compares ours, with its default serializer and over the local lane, with the best of
Serve's own transports and serializers that take part in the case under the same flags; or the lane
with gRPC, both ours. A few are bounds of a number itself. Pure.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

from bench.plan.contenders import BARE_UNARY, BY_REFERENCE, OURS, OVER_GRPC, serves
from bench.results.run import Target

__all__ = [
    "FOUR_CALLERS",
    "SERVES",
    "bounded_tail",
    "competing_callers",
    "first_token",
    "lane_latency",
    "lane_throughput",
    "latency",
    "memory_left",
    "narrowed",
    "tail",
    "throughput",
    "tokens",
]

SERVES = (BY_REFERENCE, *serves())
"""All that Serve itself offers."""
FOUR_CALLERS = f"{OURS} (4 callers)"


def throughput(what: str, at_least: float, against: tuple[str, ...] = SERVES) -> Target:
    """Calls per second are `at_least` times the others'."""
    title = f"{what}: ≥ {at_least:g} × {_whose(against)} calls/s"
    return Target("calls_per_s", OURS, against, title, at_least=at_least)


def latency(what: str, fraction: float, against: tuple[str, ...] = SERVES) -> Target:
    """The median latency is at most the others', divided by `fraction`."""
    bound = f"1/{fraction:g} of" if fraction >= 2 else f"{1 / fraction:.3g} ×"
    title = f"{what}: p50 ≤ {bound} {_whose(against)}"
    return Target("p50_ms", OURS, against, title, at_most=1 / fraction)


def tail(what: str, against: tuple[str, ...] = SERVES) -> Target:
    """The 99th percentile is no worse."""
    return Target("p99_ms", OURS, against, f"{what}: p99 no worse", at_most=1.0)


def lane_throughput(what: str, at_least: float) -> Target:
    """Calls per second over the lane are `at_least` times those over gRPC."""
    title = f"{what}: lane ≥ {at_least:g} × gRPC's calls/s"
    return Target("calls_per_s", OURS, (OVER_GRPC,), title, at_least=at_least)


def lane_latency(what: str, at_most: float) -> Target:
    """The median latency over the lane is at most this share of that over gRPC."""
    title = f"{what}: lane's p50 ≤ {at_most:g} × gRPC's"
    return Target("p50_ms", OURS, (OVER_GRPC,), title, at_most=at_most)


def bounded_tail(what: str, at_most_ms: float) -> Target:
    """The 99th percentile is at most so many milliseconds, whatever the others have."""
    title = f"{what}: p99 ≤ {at_most_ms:g} ms"
    return Target("p99_ms", OURS, (), title, at_most=at_most_ms, is_absolute=True)


def memory_left(what: str, at_most: float) -> Target:
    """Memory in the end is at most this multiple of what it was before."""
    title = f"{what}: memory ≤ {at_most:g} × what it was before"
    return Target("memory_left", OURS, (), title, at_most=at_most, is_absolute=True)


def tokens(what: str, at_least: float) -> Target:
    """Stream items per second are `at_least` times the others'."""
    title = f"{what}: ≥ {at_least:g} × Serve's best tokens/s"
    return Target("tokens_per_s", OURS, SERVES, title, at_least=at_least)


def first_token(what: str, fraction: float) -> Target:
    """The median time to a stream's first item is the others', divided by `fraction`."""
    title = f"{what}: time to first token ≤ 1/{fraction:g}"
    return Target("first_token_p50_ms", OURS, SERVES, title, at_most=1 / fraction)


def competing_callers(what: str, at_least: float) -> Target:
    """Four callers that compete get `at_least` this share of what one gets."""
    title = f"{what}: four competing callers ≥ {at_least:.0%} of one's calls/s"
    return Target("calls_per_s", FOUR_CALLERS, (OURS,), title, at_least=at_least)


def narrowed(targets: Iterable[Target], contenders: Container[str]) -> tuple[Target, ...]:
    """The same targets, against those who take part."""
    return tuple(
        replace(target, against=tuple(name for name in target.against if name in contenders))
        for target in targets
    )


def _whose(against: tuple[str, ...]) -> str:
    if against == (BARE_UNARY,):
        return "bare grpc.aio's"
    return "by reference's" if against == (BY_REFERENCE,) else "Serve's best"
