"""A window of load: how long it is, what it counted, and the sample that becomes of it.

Pure, and small enough to be pickled to whoever makes the load and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.results.run import Sample

__all__ = ["RAMP", "Counted", "Window", "sample_of"]

RAMP = 0.25
"""Share of a window's time that passes uncounted before it, where there is a ramp."""


@dataclass(frozen=True)
class Window:
    """How long to load and what to count.

    Attributes:
        in_flight: How many calls are under way at any time.
        seconds: Counted time, at least.
        min_calls: Counted calls, at least; the window grows until they have ended.
        max_s: Bound of the ramp and of the counted time, each, in seconds. It wins over
            `min_calls`.
        ramp_s, ramp_calls: What passes uncounted before the window: so much time, and so many
            calls that end. Without a ramp the first calls are counted from where they begin.
        start_at: On the clock of `time.monotonic`, which processes share, so that several callers
            start together; 0 for at once.
    """

    in_flight: int
    seconds: float
    min_calls: int = 20
    max_s: float = 2.0
    ramp_s: float = 0.0
    ramp_calls: int = 0
    start_at: float = 0.0


@dataclass(frozen=True)
class Counted:
    """What one window gave. Times are in seconds.

    Attributes:
        seconds: How long the counted time was.
        latencies_s: Of the calls that ended in it; none, if all were slower.
        first_items_s: From a stream's call to its first item, for first items that came in it.
        items: Stream items that came in it.
        caller_cpu_s: CPU time of this process meanwhile.
        callee_cpu_s: CPU time of the processes that answer.
        large_per_s: Large calls that ended beside, per second; None if there were to be none.
        carrier: What carried the calls, see `Sample.carrier`.
    """

    seconds: float
    latencies_s: list[float]
    first_items_s: list[float]
    items: int
    caller_cpu_s: float
    callee_cpu_s: float
    large_per_s: float | None = None
    carrier: str = ""


def sample_of(contender: str, number: int, counted: Sequence[Counted]) -> Sample:
    """The sample of round `number`; several callers' windows, made at one time, become one.

    Raises:
        TimeoutError: No call ended, and no stream's item came.
    """
    latencies_ms = np.concatenate([one.latencies_s for one in counted]) * 1e3
    first_items_ms = np.concatenate([one.first_items_s for one in counted]) * 1e3
    calls, items = len(latencies_ms), sum(one.items for one in counted)
    if not calls and not items:
        raise TimeoutError(f"no call ended within {counted[0].seconds:.1f} s")
    carrier = ",".join(sorted({one.carrier for one in counted}))
    sample = Sample(contender, number, calls=calls, carrier=carrier)
    if items:
        sample = replace(
            sample,
            tokens_per_s=sum(one.items / one.seconds for one in counted),
            first_token_p50_ms=float(np.median(first_items_ms)) if len(first_items_ms) else None,
        )
    if not calls:  # streams that took longer than the window
        return sample
    rates = [len(one.latencies_s) / one.seconds for one in counted]
    return replace(
        sample,
        calls_per_s=sum(rates),
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        caller_cpu_us=sum(one.caller_cpu_s for one in counted) / calls * 1e6,
        callee_cpu_us=sum(one.callee_cpu_s for one in counted) / calls * 1e6,
        fairness=min(rates) / max(rates) if len(counted) > 1 else None,
        large_per_s=counted[0].large_per_s,
    )
