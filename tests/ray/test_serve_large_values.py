"""Large values on a real Serve, in shared memory and in the stream: they are the same everywhere.

Each script is a process of its own, with replicas of its own on the shared Ray, because they read
the limits of messages and of shared memory when they start.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from serve_grpc.shared_memory.segments import is_available
from tests.ray.apps.values import KINDS, OPTIONAL
from tests.ray.scripts import on_shared_ray

MIB = 1024 * 1024
POOL, LIMIT = "SERVE_GRPC_LOCAL_POOL_BYTES", "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
TEN_MB = 10_000_000
PLAIN_DATA = {"text", "numbers"}
BYTES = {"bytes", "bytearray", "list of bytes"}
TAKEN = {
    "cloudpickle": set(KINDS),
    "pickle": set(KINDS),
    "msgpack": PLAIN_DATA | BYTES,
    "orjson": PLAIN_DATA,
}
"""Kinds that each serializer takes."""
pytestmark = [
    pytest.mark.timeout(300),  # the first test of a script waits for it
    pytest.mark.usefixtures("serve_instance"),
]
needs_memfd = pytest.mark.skipif(not is_available(), reason="shared memory is Linux's")


@pytest.fixture(scope="module")
def seen(serve_instance: None, run_script: Any) -> dict[str, Any]:
    """What became of each kind, with shared memory as it is by default."""
    return tried(run_script, "kinds")


@pytest.fixture(scope="module")
def seen_without(serve_instance: None, run_script: Any) -> dict[str, Any]:
    """The same without any."""
    return tried(run_script, "kinds", **{POOL: "0"})


def tried(run_script: Any, what: str, **env: str) -> dict[str, Any]:
    env = {LIMIT: "200000000", **on_shared_ray(), **env}
    found: dict[str, Any] = json.loads(
        run_script("large_values", what, env=env, timeout_s=240).splitlines()[-1]
    )
    return found


@pytest.fixture(params=["shared memory", "none"])
def each_way(request: pytest.FixtureRequest) -> dict[str, Any]:
    name = "seen" if request.param == "shared memory" else "seen_without"
    found: dict[str, Any] = request.getfixturevalue(name)
    return found


@pytest.mark.parametrize("lane", ["local", "grpc"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_arrives_the_same_and_is_its_receivers_own(each_way, kind, lane):
    if kind in OPTIONAL:
        pytest.importorskip(OPTIONAL[kind])
    taken = {f"{kind}, {name}, {lane}": "" for name, kinds in TAKEN.items() if kind in kinds}
    assert {what: each_way[what] for what in taken} == taken


@pytest.mark.parametrize("lane", ["local", "grpc"])
def test_every_kind_was_tried_on_the_lane_it_was_meant_for(each_way, lane):
    missing = {kind for kind, package in OPTIONAL.items() if find_spec(package) is None}
    expected = {
        f"{kind}, {name}, {lane}" for name, kinds in TAKEN.items() for kind in kinds - missing
    }
    assert {what for what in each_way if what.endswith(f", {lane}")} == expected
    assert each_way[f"carrier {lane}"] == lane


@needs_memfd
def test_both_sides_used_shared_memory_where_there_is_some(seen, seen_without):
    assert seen["replica local"]["pool"]["made"] > 0
    assert seen["caller"]["pool"]["made"] > 0
    assert seen["replica grpc"]["pool"]["made"] == 0
    for process in ("replica local", "replica grpc", "caller"):
        assert seen[process]["pool"]["bytes_in_use"] == 0
        assert seen_without[process]["pool"]["made"] == 0


@needs_memfd
def test_who_keeps_all_it_gets_is_lent_no_more_than_its_share_and_nothing_fails(run_script):
    pool = 64 * MIB
    seen = tried(run_script, "hoard", **{POOL: str(pool)})
    assert seen["carrier"] == "local"
    assert seen["kept"]
    assert seen["came"]
    for lender in ("lent", "borrowed"):
        assert 0 < seen[lender]["bytes_in_use"] <= pool // 2  # 12 of 8 MiB would be 96
    for process in ("replica", "caller"):
        assert seen[process]["pool"]["bytes_in_use"] == 0
        assert seen[process]["pool"]["bytes_kept"] <= pool


@needs_memfd
def test_many_large_echoes_leave_memory_and_descriptors_as_they_were(run_script):
    seen = tried(run_script, "many")
    assert seen["carrier"] == "local"
    for process in ("replica", "caller"):
        before, after = seen["before"][process], seen["after"][process]
        assert after["pool"]["bytes_in_use"] == 0
        assert after["pool"]["made"] <= before["pool"]["made"] + 2
        # What comes back as it was sent lies where it was, in the caller's memory.
        assert (after["pool"]["made"] > 0) is (process == "caller")
        assert after["pool"]["short"] == after["pool"]["refused"] == 0
        assert after["fds"] <= before["fds"] + 2
        assert after["rss"] - before["rss"] <= 2 * TEN_MB
