"""A cluster of two nodes on one machine, with a replica on each: what carries the calls to them.

Prints JSON: {"same node": carrier, "other node": carrier, "fallbacks": how many}.
"""

from __future__ import annotations

import json
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

import serve_grpc
from tests.ray.apps.watched import WATCHED
from tests.ray.waiting import eventually

NODE: dict[str, Any] = {
    "num_cpus": 1,
    "include_dashboard": False,
    "object_store_memory": 80_000_000,
}


def main() -> None:
    cluster = Cluster()
    try:
        cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        serve.start(proxy_location="Disabled")
        app = WATCHED.options(num_replicas=2, max_replicas_per_node=1)
        handle: Any = serve_grpc.run(app.bind(), name="nodes", route_prefix=None)
        print(json.dumps(carriers(handle.options(_by_reference=False))))
    finally:
        ray.shutdown()
        cluster.shutdown()


def carriers(handle: Any) -> dict[str, Any]:
    """Once both replicas have a session with this process."""

    def both() -> Any:
        handle.pid.remote().result(timeout_s=30)
        seen = serve_grpc.handle_statistics(handle)
        return [r.state for r in seen.replicas] == ["ready"] * 2 and seen

    seen = eventually(both, timeout_s=60)
    ours = ray.get_runtime_context().get_node_id()
    nodes = {facts.replica_id: facts.node_id for facts in _facts(handle)}
    told = {
        "same node" if nodes[r.replica_id] == ours else "other node": r.carrier
        for r in seen.replicas
    }
    return {**told, "fallbacks": seen.local_fallbacks}


def _facts(handle: Any) -> list[Any]:
    return [peer.facts for peer in handle._known_router().tally.replicas.peers]


if __name__ == "__main__":
    main()
