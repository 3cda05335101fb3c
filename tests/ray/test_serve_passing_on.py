"""Chains of three on a real Serve: the second passes on unopened what the first returns."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from serve_grpc.shared_memory.segments import is_available
from tests.ray.apps.values import KINDS, OPTIONAL

MIB = 1024 * 1024
TEN_MB = 10_000_000
NAMES = ("Maker", "Middle", "Reader")
pytestmark = [
    pytest.mark.timeout(300),  # the first test of a script waits for it
    pytest.mark.skipif(not is_available(), reason="shared memory is Linux's"),
]


@pytest.fixture(scope="module")
def seen_with(run_script: Any) -> Any:
    """What a script saw: `seen_with("flat")`."""
    known: dict[str, dict[str, Any]] = {}

    def seen_with(what: str) -> dict[str, Any]:
        if what not in known:
            env = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "200000000"}
            out = run_script("passing_on", what, env=env, timeout_s=240)
            # Ray tells of dead workers in between.
            (line,) = [line for line in out.splitlines() if line.startswith("{")]
            known[what] = json.loads(line)
        return known[what]

    return seen_with


@pytest.mark.parametrize("kind", KINDS)
def test_each_reader_gets_what_was_made_whoever_writes_to_it(seen_with, kind):
    if kind in OPTIONAL and find_spec(OPTIONAL[kind]) is None:
        pytest.skip(f"{OPTIONAL[kind]} is not installed")
    found = seen_with("kinds")["kinds"][kind]
    assert found == [True] * 5


def test_many_chains_leave_memory_as_it_was_and_the_middle_keeps_none(seen_with):
    seen = seen_with("flat")
    assert len(seen["right"]) == 220
    assert all(seen["right"])
    assert seen["after"]["Middle"]["pool"]["made"] == 0  # it copies nothing
    assert seen["after"]["Maker"]["pool"]["made"] > 0
    for name in NAMES:
        before, after = seen["before"][name], seen["after"][name]
        assert after["pool"]["made"] <= before["pool"]["made"] + 2
        assert after["pool"]["short"] == after["pool"]["refused"] == 0
        assert after["fds"] <= before["fds"] + 2
        assert after["rss"] - before["rss"] <= 2 * TEN_MB


@pytest.mark.parametrize("name", NAMES)
def test_whoever_is_killed_nobody_sees_other_bytes_and_nothing_stays_in_use(seen_with, name):
    seen = seen_with("killed")[name]
    assert seen["lent"] >= 3 * TEN_MB  # the reader held them
    assert seen["middle"] == 0  # and they were the maker's
    assert seen["kept"]
    for held in seen["held"].values():
        assert held["pool"]["bytes_in_use"] == held["pool"]["bytes_abandoned"] == 0
        assert held["pool"]["short"] == held["pool"]["refused"] == 0
