"""A node that is lost: killed, or on the other side of a link that is down."""

from __future__ import annotations

import json

import pytest

from serve_grpc.carriers.grpc.credentials import KEEPALIVE_MS, PING_TIMEOUT_MS
from tests.faults.limits import allowed
from tests.ray.driver_scripts.two_namespaces import why_not

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

ROW = 22
DETECTED_S = (KEEPALIVE_MS + PING_TIMEOUT_MS) / 1000


@pytest.fixture
def lost(run_script):
    """`lost(script)`: what its driver saw."""

    def lost(script: str) -> dict:
        lines = run_script(script, env={}, timeout_s=200).splitlines()
        return json.loads(next(line for line in lines if line.startswith("{")))

    return lost


def test_a_node_that_is_killed(lost, measured):
    seen = lost("lost_node")
    fault = "one of two nodes of a ray.cluster_utils.Cluster killed, 200 calls in flight"
    what = f"settled after the end of its replica ({seen['died_s']:.1f} s after the kill)"
    measured(ROW, fault, what, "≤ 1 s", f"{seen['took_s']:.2f} s")
    measured(ROW, fault, "wrong", "0", seen["wrongs"])
    measured(ROW, fault, "calls answered afterwards", "200", seen["after"])
    assert not any(seen["wrongs"].values()), seen
    assert set(seen["kinds"]) == {"ok", "unknown"}
    assert seen["after"] == 200
    assert seen["took_s"] <= allowed(1)


def test_a_link_between_two_namespaces_that_goes_down(lost, measured):
    if reason := why_not():
        pytest.skip(reason)
    seen = lost("two_namespaces")
    fault = "link between two network namespaces down, 100 calls in flight"
    required = f"≤ {DETECTED_S + 1:.0f} s"
    measured(ROW, fault, "settled after", required, f"{seen['took_s']:.2f} s")
    measured(ROW, fault, "wrong", "0", seen["wrongs"])
    measured(ROW, fault, "calls answered while it is down", "200", seen["during"])
    assert not any(seen["wrongs"].values()), seen
    assert set(seen["kinds"]) == {"ok", "unknown"}
    assert seen["during"] == 200
    assert seen["took_s"] <= allowed(DETECTED_S + 1)
