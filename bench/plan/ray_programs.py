"""Cases that run Ray Serve's own benchmark programs, as they are inside the installed wheel.

A workload of kind "ray-program" says:

    program    a module below `ray.serve._private.benchmarks`
    options    what its command line would set; how long a trial takes is the plan's window
    size       items of a stream, 0 for a program that streams nothing

`bench/ray_programs` tells what is swapped in them. A round is one trial of a program. Pure.
"""

from __future__ import annotations

from typing import Any

from bench.plan.contenders import BY_REFERENCE, OURS, OVER_GRPC, serves
from bench.results.run import Case

__all__ = ["KIND", "LATENCY", "STREAMING", "THROUGHPUT", "ray_cases"]

KIND = "ray-program"
LATENCY = "handle_noop_latency"
THROUGHPUT = "handle_throughput"
STREAMING = "streaming.streaming_handle_throughput"

CONTENDERS = (BY_REFERENCE, *serves("cloudpickle"), OURS, OVER_GRPC)
"""The programs choose no serializer, so these are the defaults."""
CALLS = 20
STREAMS = 5
TOKENS = 50


def ray_cases() -> tuple[Case, ...]:
    """One case for each program. Replicas have Serve's default of 5 ongoing requests."""
    return (
        _case("latency", LATENCY, 1, num_requests=50, mode="remote"),
        _case("throughput", THROUGHPUT, CALLS, batch_size=CALLS, num_trials=1),
        _case(
            "streaming",
            STREAMING,
            STREAMS,
            tokens_per_request=TOKENS,
            batch_size=STREAMS,
            num_trials=1,
            io_mode="async",
        ),
    )


def _case(name: str, program: str, in_flight: int, **options: Any) -> Case:
    return Case(
        id=f"ray-programs/default/{name}",
        sweep="ray-programs",
        flags="default",
        axis="",
        x=in_flight,
        workload={
            "kind": KIND,
            "series": f"{program.rpartition('.')[2]}.py",
            "program": program,
            "options": {"num_replicas": 1, **options},
            "in_flight": in_flight,
            "size": options.get("tokens_per_request", 0),
        },
        contenders=CONTENDERS,
    )
