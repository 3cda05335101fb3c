"""The measurements of shared memory drive the package's own pool and mappings."""

from __future__ import annotations

import pytest

from bench.shared_memory.steps import SIZES, measure
from serve_grpc.shared_memory.segments import is_available


@pytest.mark.skipif(not is_available(), reason="shared memory is Linux's")
def test_each_step_is_measured() -> None:
    rows = list(measure(SIZES[0]))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {"make a segment", "copy into a warm range", "whole way, read"} <= set(names)
    assert all(0 < row.least_us <= row.median_us and row.size == SIZES[0] for row in rows)
