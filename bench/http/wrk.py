"""The load generator of the HTTP cases: wrk's command line, and what it printed, as numbers.

wrk keeps a fixed number of connections busy, each with one request at a time. `wrk.lua` makes it
end with one JSON line. Pure: who runs it is `measure.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MISSING", "Measured", "command", "parse"]

MISSING = "wrk is not installed: apt-get install wrk"
SCRIPT = Path(__file__).with_name("wrk.lua")
ANSWER_TIMEOUT_S = 10
"""A slower answer is an error; wrk's own default, 2 s, is within reach of a slow transport."""


@dataclass(frozen=True)
class Measured:
    """One run of wrk.

    Attributes:
        requests: Answers that came, of whatever status.
        seconds: How long it ran.
        p50_ms, p99_ms: From a request's sending to the end of its answer.
        errors: How often each kind of error happened, without those that did not. "status" are
            answers of 400 and above.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    @property
    def failure(self) -> str | None:
        """Why the numbers do not count, or None."""
        if self.errors:
            counts = ", ".join(f"{count} of {kind}" for kind, count in self.errors.items())
            return f"wrk counted errors beside {self.requests} answers: {counts}"
        return None if self.requests else f"no answer within {self.seconds:.1f} s"


def command(
    url: str, headers: Mapping[str, str], *, connections: int, seconds: int, program: str = "wrk"
) -> list[str]:
    """The command line: one thread, since it shares its cores with what it measures.

    Args:
        seconds: Whole ones, as wrk takes no others.
    """
    words = [program, "--threads", "1", "--connections", str(connections)]
    words += ["--duration", f"{seconds}s", "--timeout", f"{ANSWER_TIMEOUT_S}s"]
    words += ["--script", str(SCRIPT)]
    for name, value in headers.items():
        words += ["--header", f"{name}: {value}"]
    return [*words, url]


def parse(output: str) -> Measured:
    """Read what wrk printed to stdout.

    Raises:
        ValueError: It has no line of `wrk.lua`.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"wrk printed no summary, but: {output.strip()[-200:] or 'nothing'}")
    found = json.loads(lines[-1])
    return Measured(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        errors={kind: count for kind, count in found["errors"].items() if count},
    )
