"""Tests that run over each carrier. All ends of a test's Ray are on one node, so its calls take the
local lane; where the replicas have none, they go over gRPC, as between nodes.
"""

from __future__ import annotations

from typing import Any

import serve_grpc

__all__ = ["CARRIERS", "carriers_of", "options_over"]

CARRIERS = ("local", "grpc")


def options_over(carrier: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a deployment whose replicas are called over this carrier."""
    if carrier == "local":
        return options
    actor = options.get("ray_actor_options", {})
    env = {"env_vars": {"SERVE_GRPC_LOCAL": "0"}}
    return {**options, "ray_actor_options": {**actor, "runtime_env": env}}


def carriers_of(handle: Any) -> list[str]:
    """What carries the sessions with its replicas, in order; "" for those without one."""
    return sorted(r.carrier for r in serve_grpc.handle_statistics(handle).replicas)
