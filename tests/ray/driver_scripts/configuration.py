"""What Ray Serve is set up to do: first without serve_grpc, then with it and an app that opted in.

Serve is started twice on one Ray, each time as by somebody who only chose a port. Prints JSON:
{"before": ..., "after": ..., "patched": what the import changed in Ray's modules}.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import serve

from tests.ray.apps.configured import Probe, facts, patches, things_of_ray
from tests.ray.instance import free_port

OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "max_queued_requests": 7,
}
REPLICA_OPTIONS = (
    "init_args",
    "init_kwargs",
    "ray_actor_options",
    "resource_dict",
    "placement_group_bundles",
    "placement_group_strategy",
    "max_replicas_per_node",
)
OF_ONE_RUN = {
    "actor_id",
    "actor_name",
    "controller_health_metrics",
    "deployment_timestamp",
    "last_deployed_time_s",
    "log_file_path",
    "pid",
    "replica_id",
    "start_time_s",
    "worker_id",
}


def lasting(value: Any) -> Any:
    """Without what is another in each run."""
    if isinstance(value, dict):
        return {str(k): lasting(v) for k, v in value.items() if k not in OF_ONE_RUN}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)  # the order of a set is not the same each time it is filled
    return [lasting(v) for v in value] if isinstance(value, (list, tuple)) else str(value)


def settings_of(deployment: serve.Deployment) -> dict[str, Any]:
    """Everything a `Deployment` says, but for its code."""
    replica = deployment._replica_config
    return {
        "name": deployment.name,
        "version": deployment._version,
        "config": lasting(deployment._deployment_config.model_dump()),
        "replica": lasting({name: getattr(replica, name) for name in REPLICA_OPTIONS}),
    }


def snapshot(decorate: Callable[..., Any], port: int) -> dict[str, Any]:
    """Start Serve, run an application, look at everything, and shut Serve down."""
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    probe = decorate(**OPTIONS)(Probe)
    app = probe.options(name="Outer").bind(probe.options(name="Inner").bind())
    handle = serve.run(app, name="app", route_prefix="/app")
    assert handle.remote().result(timeout_s=60) == 2
    seen = {
        "serve": lasting(serve.context._global_client.get_serve_details()),
        "plain deployment": settings_of(decorate(Probe)),
        "deployment with options": settings_of(probe),
        "driver": facts(),
        "replica": handle.facts.remote().result(timeout_s=60),
    }
    serve.shutdown()
    return seen


def main() -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        port = free_port()
        before = snapshot(serve.deployment, port)
        assert "serve_grpc" not in sys.modules
        of_ray, threads, process = dict(things_of_ray()), threading.active_count(), facts()

        import serve_grpc

        patched = [name for name, thing in things_of_ray() if of_ray.get(name, thing) is not thing]
        new_threads = threading.active_count() - threads
        changed = [name for name, value in facts().items() if process[name] != value]
        after = snapshot(serve_grpc.deployment, port)
        patched += patches()
    finally:
        ray.shutdown()
    print(
        json.dumps(
            {
                "before": before,
                "after": after,
                "import": {"patched": patched, "threads": new_threads, "changed": changed},
            }
        )
    )


if __name__ == "__main__":
    main()
