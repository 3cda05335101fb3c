"""Several nodes: which replicas get the calls, and what is lost with a node or with the controller.

One script, `driver_scripts/cluster.py`, starts a cluster of three nodes of its own (real raylets
and workers, on one machine), runs everything over each transport there, and is asked here.
"""

from __future__ import annotations

import json

import pytest

from tests.ray.compat.behaviours import BY_REFERENCE, behaviour

pytestmark = pytest.mark.timeout(600)

CALLS = 24


@pytest.fixture(scope="module")
def every_transport(run_script):
    """What the script saw, by transport."""
    printed = run_script("cluster", env={}, timeout_s=500)
    return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))


@pytest.fixture
def seen(every_transport, transport):
    """What it saw over this transport: calls by node, except "controller" and "node"."""
    return every_transport[transport.name]


@behaviour("Routing", "Calls reach the replicas of every node")
def test_calls_reach_every_node(seen):
    assert set(seen["any"]) == {"near", "zone", "far"}
    assert sum(seen["any"].values()) == CALLS


@behaviour("Routing", "`_prefer_local_routing`: replicas on the caller's node get the calls")
def test_calls_stay_on_the_node(seen):
    assert seen["near"] == {"near": CALLS}
    assert seen["near_again"] == {"near": CALLS}


def test_the_first_calls_of_a_handle_stay_on_the_node_too(every_transport):
    """While sessions are opened; calls that do not fit there go to the next best node."""
    assert every_transport["serve_grpc"]["burst"] == {"near": 4, "zone": 4, "far": 0}


@behaviour(
    "Routing",
    "Replicas in the caller's availability zone get the calls "
    "(`RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING`, on by default), on a platform that tells Serve "
    "the zones; Ray alone does not",
)
def test_calls_stay_in_the_zone(seen):
    assert set(seen["zone"]) == {"near", "zone"}


@behaviour("Routing", "While the replicas on the node are busy, others in the zone get the calls")
def test_calls_leave_a_busy_node(seen):
    assert seen["near_busy"] == {"zone": CALLS}


@behaviour("Routing", "While the replicas in the zone are busy too, any other gets the calls")
def test_calls_leave_a_busy_zone(seen):
    assert seen["zone_busy"] == {"far": CALLS}


@behaviour(
    "Operations",
    "When a node is lost, the calls that run there fail with a `RayActorError` and later ones are "
    "answered by the other nodes",
)
def test_a_lost_node_takes_only_its_calls(seen, transport):
    assert "RayActorError" in seen["node"]["held"]
    # A worker may outlive its node for a moment, and answer. By reference Ray may still send a call
    # there, which fails.
    may_be = {"far", "ActorUnavailableError"} if transport.name == BY_REFERENCE else {"far"}
    assert set(seen["node"]["later"]) - may_be == {"near", "zone"}
    assert sum(seen["node"]["later"].values()) % CALLS == 0


@behaviour(
    "Operations",
    "Calls go on while Serve's controller is killed and restarted, and handles follow what the new "
    "one deploys",
)
def test_calls_go_on_without_the_controller(seen):
    controller = seen["controller"]
    assert controller["errors"] == []
    assert controller["during"] > 10
    assert controller["first_is_old"]
    assert not controller["last_is_old"]
