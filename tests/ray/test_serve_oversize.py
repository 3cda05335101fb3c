"""Requests and results over the message limit that go through Ray's object store, on a real Serve.

One script makes all calls, on a Ray of its own whose limit is 1 MiB; here each of its scenarios is
a test of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

SCENARIOS = (
    "all_serializers",
    "arrays_arrive_writable_on_both_sides",
    "awaited_on_a_loop",
    "refs_in_values_are_lent_along",
    "a_response_is_passed_on_unopened",
    "calls_that_serves_router_assigns",
    "an_item_of_a_stream_still_fails",
    "a_replica_that_says_error_gets_none",
    "a_replica_with_a_lower_limit_is_respected",
    "objects_of_calls_that_are_given_up_are_freed",
    "a_thousand_calls_leave_nothing",
    "a_request_that_is_repeated_keeps_its_object",
    "a_replica_dies_before_its_result_is_fetched",
    "a_replica_dies_while_its_result_is_fetched",
    "a_replica_that_is_stopped_stays_until_its_results_were_fetched",
    "a_caller_dies_while_its_request_is_fetched",
    "what_does_not_resolve_fails_its_own_call",
    "where_pickle_is_refused_none_is_read",
    "what_went_by_reference_is_counted",
)
ENVIRONMENT = {
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(1024 * 1024),
    "SERVE_GRPC_OVERSIZE": "by_reference",
}


@pytest.fixture(scope="module")
def came_of(run_script: Callable[..., str]) -> dict[str, str]:
    """Of each scenario what went wrong, "" if nothing did."""
    said = run_script("oversize", env=ENVIRONMENT, timeout_s=900)
    found: dict[str, str] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.timeout(1000)
def test_all_scenarios_are_listed(came_of: dict[str, str]) -> None:
    assert tuple(came_of) == SCENARIOS


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(came_of: dict[str, str], scenario: str) -> None:
    assert came_of[scenario] == "", came_of[scenario]
