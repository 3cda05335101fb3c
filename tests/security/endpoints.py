"""What an attacker knows of a replica, and what the attack tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import serve_grpc
from tests.ray.listing import infos_of

__all__ = ["OPTIONS", "Target", "decoded", "deployed", "targets_of"]

OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
}


class Target(NamedTuple):
    """A replica: where it listens and what proves membership there."""

    address: str
    replica_id: str
    secret: bytes


@contextlib.contextmanager
def deployed(app: Any, name: str) -> Iterator[serve_grpc.DeploymentHandle[Any]]:
    """Run it for as long as the context; gives a by-value handle."""
    from ray import serve

    handle = serve_grpc.run(app, name=name, route_prefix=None)
    try:
        yield handle.options(_by_reference=False)
    finally:
        handle.shutdown()
        serve.delete(name, _blocking=False)


def targets_of(handle: serve_grpc.DeploymentHandle[Any]) -> list[Target]:
    """The replicas of its deployment, as the control plane tells their callers."""
    from serve_grpc._serve.cluster import cluster_secret

    handle.options(_by_reference=True).facts.remote().result(timeout_s=30)  # the router is up
    return [
        Target(
            info.replica_metadata["serve_grpc"]["address"],
            info.replica_id.unique_id,
            cluster_secret(),
        )
        for info in infos_of(handle)
    ]


def decoded(handle: serve_grpc.DeploymentHandle[Any]) -> int:
    """How many payloads the only replica of `Guarded` has read."""
    facts = handle.options(_by_reference=True).facts.remote().result(timeout_s=30)
    number: int = facts["decoded"]
    return number
