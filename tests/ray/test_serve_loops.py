"""Drivers on other event loops than asyncio's own (`driver_scripts/loops.py`)."""

from __future__ import annotations

import pytest

from tests.ray.scripts import run_script


@pytest.mark.timeout(200)
@pytest.mark.parametrize("router", ["routers_loop", "drivers_loop"])
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_a_driver_calls_on_every_loop(policy: str, router: str) -> None:
    env = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1" if router == "routers_loop" else "0"}
    printed = run_script("loops", policy, env=env, timeout_s=180)
    assert printed.splitlines()[-1].startswith(f"policy: {policy}")
