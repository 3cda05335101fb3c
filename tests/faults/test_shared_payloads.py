"""Rows 1, 3 and 13 with 10 MB in shared memory: processes that are killed with payloads on their
way, and one that stands still while it reads what was lent to it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_grpc.shared_memory.segments import is_available
from tests.faults.limits import allowed

pytestmark = pytest.mark.skipif(not is_available(), reason="shared memory is Linux's")

MIB = 1024 * 1024
ROUNDS = 2
FDS = 12
"""A session, its segments and Ray's own connections come and go; a leak would be more each time."""
RSS_MIB = 60
"""What was on its way in one round may still be on the heap after the next: 8 of 10 MB."""


@pytest.fixture
def seen_with(run_script: Any) -> Any:
    """What a script saw: `seen_with("replica")`."""

    def seen_with(what: str) -> dict[str, Any]:
        env = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "200000000"}
        out = run_script("large_faults", what, str(ROUNDS), env=env, timeout_s=200)
        # Ray tells of dead workers in between.
        (line,) = [line for line in out.splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(line)
        return found

    return seen_with


def assert_flat(held: list[dict[str, Any]]) -> None:
    """What a survivor holds after each round: nothing in use, and no more each time."""
    for each in held:
        assert each["pool"]["bytes_in_use"] == each["pool"]["bytes_abandoned"] == 0
        assert each["pool"]["short"] == each["pool"]["refused"] == 0
    assert held[-1]["fds"] - held[1]["fds"] <= FDS
    assert held[-1]["rss"] - held[1]["rss"] <= RSS_MIB * MIB


def test_a_killed_replica_leaves_nothing_of_its_payloads_in_use(seen_with, measured):
    seen = seen_with("replica")
    fault = f"SIGKILL of the replica, 8 calls of 10 MB on it, {ROUNDS} times"
    plain, idempotent = seen["outcomes"][::2], seen["outcomes"][1::2]
    settle_s = max(seen["settled_s"][::2])
    measured(1, fault, "until the last lost call has its error", "≤ 1 s", f"{settle_s:.2f} s")
    measured(1, fault, "bytes in use of the caller's pool afterwards", "0", 0)
    for outcomes in plain:
        assert outcomes[0] == "ok"  # it had its result before
        assert set(outcomes) == {"ok", "ReplicaDiedError"}
    assert all(set(outcomes) == {"ok"} for outcomes in idempotent)
    assert settle_s <= allowed(1)
    assert seen["kept"] == [True] * ROUNDS  # results of dead replicas, and calls of new ones
    assert_flat(seen["caller"])


@pytest.mark.long
def test_a_killed_caller_leaves_nothing_of_its_payloads_in_use(seen_with, measured):
    seen = seen_with("caller")
    fault = f"SIGKILL of a calling process, 8 calls of 10 MB on their way, {ROUNDS} times"
    measured(13, fault, "bytes in use of the replica's pool afterwards", "0", 0)
    assert all(in_use > 0 for in_use in seen["in_use"])
    assert seen["outcomes"] == ["ReplicaDiedError"] * ROUNDS
    assert seen["is_same_replica"]
    assert_flat(seen["replica"])


@pytest.mark.long
def test_what_a_stopped_replica_still_reads_is_never_written_again(seen_with, measured):
    seen = seen_with("stopped")
    fault = "SIGSTOP of a replica that keeps 3 arguments, its session given up, then SIGCONT"
    measured(3, fault, "arguments that changed", "0", seen["kept"].count(False))
    assert seen["lent"]["bytes_in_use"] >= 3 * 10_000_000
    assert seen["outcome"] == "RequestCancelledError"
    assert seen["is_same_replica"]
    assert seen["kept"] == [True] * 3
    for process in ("replica", "caller"):
        assert seen[process]["pool"]["bytes_in_use"] == 0
        assert seen[process]["pool"]["bytes_abandoned"] == 0
