"""The HTTP cases: wrk -> proxy -> A -> B -> C, where the two inner calls are the contender's.

A workload of kind "http" says:

    proxy        "haproxy" (RAY_SERVE_ENABLE_HA_PROXY=1) or "python" (Serve's default)
    connections  of wrk, each with one request at a time
    window_s     whole seconds, as wrk counts them

In a sample a "call" is an HTTP request with both of its inner calls; the caller is A, the ingress,
whose CPU time includes HTTP; the callee are B and C together. The module is not called `http`: with
this directory on the path, as pytest puts it there, it would hide the standard library's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from bench.plan.contenders import BY_REFERENCE, OURS, OVER_GRPC, serves
from bench.plan.targets import narrowed, tail, throughput
from bench.results.run import Case, Flags, Target

__all__ = ["CONNECTIONS", "Proxy", "http_cases"]

Proxy = Literal["haproxy", "python"]

CONNECTIONS = 32
CONTENDERS = (BY_REFERENCE, *serves("cloudpickle", "orjson"), OURS, OVER_GRPC)
"""The names are what is sent; of Serve's serializers that take them, these are default and best."""
AT_DEFAULTS = (BY_REFERENCE, *serves("cloudpickle"), OURS, OVER_GRPC)


def http_cases() -> tuple[Case, ...]:
    """One case for each proxy and set of flags, the one that counts most first."""
    return (
        _case("haproxy", "throughput", 2, _targets("throughput-optimised flags")),
        _case("haproxy", "default", 1, _targets("default flags")),
        _case("python", "default", 1, contenders=AT_DEFAULTS),
    )


def _targets(flags: str) -> tuple[Target, ...]:
    what = f"HTTP A → B → C behind HAProxy, {flags}, {CONNECTIONS} connections"
    return (throughput(what, 1.6), tail(what))


def _case(
    proxy: Proxy,
    flags: Flags,
    window_s: int,
    targets: Iterable[Target] = (),
    contenders: tuple[str, ...] = CONTENDERS,
) -> Case:
    return Case(
        id=f"http/{flags}/{proxy}",
        sweep="http",
        flags=flags,
        axis="",
        x=CONNECTIONS,
        workload={
            "kind": "http",
            "proxy": proxy,
            "connections": CONNECTIONS,
            "window_s": window_s,
        },
        contenders=contenders,
        targets=narrowed(targets, contenders),
    )
