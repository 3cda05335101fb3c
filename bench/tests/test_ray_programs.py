"""Cases of Ray's own programs: who measures them, and what becomes of their answers."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from bench.plan.plans import full_plan, quick_plan
from bench.ray_programs.worker import sample_of
from bench.workers.groups import groups


def test_they_belong_to_the_full_plan_and_have_a_worker_of_their_own() -> None:
    (group,) = groups(full_plan().only(["ray-programs"]).cases)
    assert (group.module, group.variables) == ("bench.ray_programs.worker", {})
    assert len(group.cases) == 3
    assert quick_plan().only(["ray-programs"]).is_empty


def test_latencies_become_percentiles_and_a_rate() -> None:
    sample = sample_of("by reference", 2, pd.Series([1.0, 2.0, 3.0]), 0)
    assert (sample.p50_ms, sample.calls, sample.round) == (2.0, 3, 2)
    assert sample.calls_per_s == 500
    assert sample.tokens_per_s is None


@pytest.mark.parametrize(("tokens", "calls_per_s"), [(0, 300.0), (100, 3.0)])
def test_a_throughput_is_of_calls_or_of_tokens(tokens: int, calls_per_s: float) -> None:
    answer = (300.0, 0.0, pd.Series([], dtype=float))
    sample = sample_of("by reference", 0, answer, tokens)
    assert sample.calls_per_s is not None
    assert math.isclose(sample.calls_per_s, calls_per_s)
    assert sample.tokens_per_s == (300.0 if tokens else None)
    assert sample.p50_ms is None
