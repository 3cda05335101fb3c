"""Opting in changes the data plane and nothing else.

`driver_scripts/configuration.py` looks at everything that Serve and its processes are set up to do,
without serve_grpc and with it, on a Ray of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)

OUR_FILTER = "_before_other_records"
"""Of a replica's log: drops nothing, and keeps access log lines before what is logged later."""


@pytest.fixture(scope="module")
def seen(run_script: Callable[..., str]) -> Any:
    """What the script saw."""
    return json.loads(run_script("configuration", env={}, timeout_s=250).splitlines()[-1])


def test_serve_reports_the_same_instance(seen):
    """Proxy location, ports, HTTP and gRPC options, proxies, applications, deployments."""
    before, after = (seen[when]["serve"] for when in ("before", "after"))
    assert before["proxy_location"]
    assert before["http_options"]["port"]
    assert set(before["applications"]["app"]["deployments"]) == {"Outer", "Inner"}
    assert after == before


@pytest.mark.parametrize("which", ["plain deployment", "deployment with options"])
def test_a_deployment_has_the_same_options(seen, which):
    assert seen["after"][which] == seen["before"][which]


@pytest.mark.parametrize("what", ["environ", "constants", "logging", "process"])
def test_the_driver_is_set_up_alike(seen, what):
    assert seen["before"]["driver"][what]
    assert seen["after"]["driver"][what] == seen["before"]["driver"][what]


@pytest.mark.parametrize("what", ["environ", "constants", "process", "loop"])
def test_a_replica_is_set_up_alike(seen, what):
    assert seen["before"]["replica"][what]
    assert seen["after"]["replica"][what] == seen["before"]["replica"][what]


def test_a_replica_logs_alike(seen):
    before, after = (dict(seen[when]["replica"]["logging"]) for when in ("before", "after"))
    filters = after["ray.serve"][3]
    assert filters == [*before["ray.serve"][3], OUR_FILTER]
    filters.remove(OUR_FILTER)
    assert after == before


def test_the_import_changes_nothing_in_the_process(seen):
    assert seen["import"] == {"patched": [], "threads": 0, "changed": []}


def test_a_replica_that_opted_in_runs_an_unpatched_ray(seen):
    assert [seen[when]["replica"]["has_serve_grpc"] for when in ("before", "after")] == [0, 1]
    assert seen["after"]["replica"]["patches"] == []
