"""Libraries that observe gRPC, turned on in the driver and in the replicas of a real Serve.

Each in processes of its own (`driver_scripts/observed.py`); what they see of a server and a caller
without Serve is looked at by `tests/behaviour/test_observed.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.ray.scripts import on_shared_ray


@pytest.mark.timeout(200)
@pytest.mark.parametrize("library", ["sentry", "opentelemetry", "ddtrace"])
def test_calls_by_value_are_answered_and_plain_calls_observed(
    serve_instance: None, run_script: Callable[..., str], library: str
) -> None:
    # What is observed is gRPC: the calls within this node must not take the local lane.
    env = {"SERVE_GRPC_LOCAL": "0", **on_shared_ray()}
    printed = run_script("observed", library, env=env, timeout_s=180)
    assert json.loads(printed.splitlines()[-1]) == {
        "answers": [["a", [0, 1, 2]], False, '"plain"'],
        "seen": [[], [], ["/serve_grpc.v1.Replica/Call"]],
    }
