"""The measurements of fleets drive Serve's real router and ours; a small fleet shows both."""

from __future__ import annotations

import asyncio

import pytest

from bench.fleet.real_router import measure_arrival, measure_calls, measure_changes


@pytest.mark.parametrize("is_ours", [False, True])
def test_a_first_list_is_measured(is_ours):
    arrival = asyncio.run(measure_arrival(20, is_ours=is_ours))
    assert arrival.look_ups == (0 if is_ours else 20)
    assert arrival.longest_stall_ms > 0
    assert arrival.done_ms > 0


@pytest.mark.parametrize("is_ours", [False, True])
def test_one_replica_less_or_more_is_measured(is_ours):
    changes = asyncio.run(measure_changes(20, 3, is_ours=is_ours))
    assert (changes.look_ups > 0) != is_ours
    assert 0 < changes.less_ms <= changes.longest_ms
    assert 0 < changes.more_ms <= changes.longest_ms


@pytest.mark.parametrize("is_changing", [False, True])
def test_calls_beside_lists_are_measured(is_changing):
    calls = asyncio.run(measure_calls(20, 3, 5, is_changing=is_changing))
    assert 0 < calls.p50_ms <= calls.p99_ms <= calls.longest_ms
