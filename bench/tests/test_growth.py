"""The growth measurements drive the package's own router; their stand-ins must keep fitting it."""

from __future__ import annotations

from bench.growth.routing import measure_routing


def test_routing_with_two_replicas_is_measured():
    rows = measure_routing(2)
    assert {row["x"] for row in rows} == {2}
    assert all(row["value"] > 0 for row in rows), rows
