"""Drivers on other event loops than asyncio's own (`driver_scripts/loops.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ray.scripts import on_shared_ray


@pytest.mark.timeout(200)
@pytest.mark.parametrize("router", ["routers_loop", "drivers_loop"])
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_a_driver_calls_on_every_loop(
    run_script: Callable[..., str], bench: Any, policy: str, router: str
) -> None:
    env = {
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1" if router == "routers_loop" else "0",
        **on_shared_ray(),
    }
    printed = run_script("loops", policy, env=env, timeout_s=180)
    assert printed.splitlines()[-1].startswith(f"policy: {policy}")
