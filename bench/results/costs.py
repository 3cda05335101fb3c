"""What the parts of a call cost, as `bench/micro` measured it.

pytest-benchmark's JSON (`--benchmark-json`, with the `extra_info` that `micro/conftest.py` adds)
becomes rows that a run can carry among those of growth, so that they are saved, shown and compared
with it. A cost's row has "part" and "side" besides "name", "x" (always 1), "value" and "unit".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Cost", "cost_rows", "costs_of", "without_costs"]

UNIT = "µs"


@dataclass(frozen=True)
class Cost:
    """CPU time of one part of a call.

    Attributes:
        part: "codec", "session", "pick", "accounting", "execution", ...
        side: "caller", "replica" or "both".
        what: What was timed.
        us_per_call: In microseconds.
    """

    part: str
    side: str
    what: str
    us_per_call: float


def cost_rows(path: Path) -> list[dict[str, Any]]:
    """Rows for `Run.growth` from pytest-benchmark's JSON; benchmarks without a part are left out.

    Raises:
        OSError: There is no such file.
        ValueError: It is not JSON.
    """
    rows = []
    for benchmark in json.loads(path.read_text())["benchmarks"]:
        info = benchmark["extra_info"]
        if "us_per_call" in info:
            rows.append(
                {
                    "name": info["what"],
                    "x": 1,
                    "value": info["us_per_call"],
                    "unit": UNIT,
                    "part": info["part"],
                    "side": info["side"],
                }
            )
    return rows


def costs_of(rows: Iterable[dict[str, Any]]) -> list[Cost]:
    """The costs among a run's rows."""
    return [
        Cost(row["part"], row["side"], row["name"], row["value"]) for row in rows if "part" in row
    ]


def without_costs(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's rows that are not costs."""
    return [row for row in rows if "part" not in row]
