"""What the lane, proofs of membership and TLS cost, as `bench/doors` measured it.

A door's row, one of those in `Run.growth`: "door", "name", "x" (calls in flight), "value" and
"unit". The door that all are compared with is BARE.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

__all__ = ["BARE", "Row", "doors_of", "without_doors"]

BARE = "bare gRPC stream, no proof"

Row = dict[str, Any]


def doors_of(rows: Iterable[Row]) -> dict[str, list[str]]:
    """By door: calls/s with 100 in flight and p50 of a lone call, as text; of a run's rows."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if "door" in row:
            digits = ",.3g" if row["x"] == 1 else ",.0f"
            found[row["door"]].append(f"{row['value']:{digits}} {row['unit']}")
    return dict(found)


def without_doors(rows: Iterable[Row]) -> list[Row]:
    """A run's rows that are not of doors."""
    return [row for row in rows if "door" not in row]
