"""Small things a handle needs of Serve: its default marker, a flag, and Serve's own handle.

Ray Serve keeps one handle for each deployment in a process, and a router has a price: a long poll
of the controller, and with autoscaling a report in each interval. So the handles that are made of
Serve's share its router.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from ray.serve import context as serve_context
from ray.serve._private.constants import RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP
from ray.serve._private.utils import DEFAULT, get_random_string

__all__ = ["DEFAULT", "RUN_ROUTER_IN_SEPARATE_LOOP", "get_random_string", "shared_router"]

RUN_ROUTER_IN_SEPARATE_LOOP: bool = RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP


def shared_router(serves_handle: Any) -> Any:
    """The router of Serve's own handle, started if need be; None where others must not use it."""
    if not RUN_ROUTER_IN_SEPARATE_LOOP:
        # It would live and die with the running loop, which stays only in a replica.
        is_replica = serve_context._get_internal_replica_context() is not None
        if not is_replica or asyncio._get_running_loop() is None:
            return None
    with _lock:  # or two threads would start one each
        return serves_handle._init_router()


_lock = threading.Lock()
