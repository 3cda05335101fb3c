"""Three nodes in two zones: who gets the calls, and what a lost node and controller do to them.

Prints what was seen over each transport as JSON: {transport: {what: ...}}. Node ids are replaced by
"near" (the callers' node), "zone" (the other one in their zone) and "far".
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

import serve_grpc
from tests.ray.apps.gated import Board
from tests.ray.apps.placed import Caller, Placed
from tests.ray.compat.behaviours import TRANSPORTS, over
from tests.ray.traffic import traffic
from tests.ray.waiting import eventually

NODES = {"zone": "a", "near": "a", "far": "b"}
"""Each node's name and zone. The first one is the head, with Serve's controller and this driver."""
BUSY = 4
CALLS = 24
OPTIONS: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 0.1,
    "health_check_period_s": 1,
    "max_ongoing_requests": 100,
}


def zones_are_labels() -> None:
    """In every worker: what a platform does that tells Serve its zones. Ray itself has none."""
    from ray.serve._private.cluster_node_info_cache import DefaultClusterNodeInfoCache

    DefaultClusterNodeInfoCache.get_node_az = lambda self, node_id: self.get_node_labels(
        node_id
    ).get("zone")


@contextlib.contextmanager
def three_nodes() -> Iterator[tuple[Cluster, dict[str, Any]]]:
    """The cluster and its nodes by name, with Serve on it."""
    cluster = Cluster()
    try:
        nodes = {
            name: cluster.add_node(
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=80 * 1024 * 1024,
                labels={"zone": zone},
                resources={name: 1},
                wait=False,
            )
            for name, zone in NODES.items()
        }
        cluster.wait_for_nodes()
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"worker_process_setup_hook": zones_are_labels},
        )
        serve.start(proxy_location="Disabled")
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def pinned(node: str, **env: str) -> dict[str, Any]:
    """Actor options for a replica on this node."""
    options: dict[str, Any] = {"num_cpus": 0.01, "resources": {node: 0.01}}
    return {**options, "runtime_env": {"env_vars": env}} if env else options


def deploy() -> None:
    """A replica of `Placed` on each node, and two callers in one zone."""
    placed = serve_grpc.deployment(
        **{**OPTIONS, "max_ongoing_requests": BUSY},
        num_replicas=3,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0.01},
    )(Placed)
    caller = serve.deployment(**OPTIONS)(Caller)
    anywhere = caller.options(
        name="Anywhere",
        ray_actor_options=pinned("zone", RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING="0"),
    )
    bound = placed.bind()
    lonely = serve_grpc.deployment(**OPTIONS, ray_actor_options=pinned("far"))(Placed)
    app = anywhere.bind(bound, caller.options(ray_actor_options=pinned("near")).bind(bound))
    serve.run(app, name="app", route_prefix=None)
    serve.run(lonely.options(name="Lonely").bind(), name="lonely", route_prefix=None)


class Locality:
    """What the callers see. Args: `names` of nodes by id."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.zoned = serve.get_deployment_handle("Caller", "app")
        self.anywhere = serve.get_deployment_handle("Anywhere", "app")

    def nodes(self, caller: Any, transport: str, which: str, number: int = CALLS) -> dict[str, int]:
        """Calls that each node, or kind of error, got."""
        found = caller.nodes.remote(transport, which, number).result(timeout_s=90)
        return {self.names.get(name, name): count for name, count in found.items()}

    def until_both_answer(self, transport: str) -> dict[str, int]:
        """As `nodes`, again and again until both nodes of one zone have been among them."""
        found: Counter[str] = Counter()

        def both_have() -> bool:
            found.update(self.nodes(self.anywhere, transport, "any"))
            return found.keys() >= {"near", "zone"}

        eventually(both_have, timeout_s=30)
        return dict(found)

    def seen(self, transport: str) -> dict[str, Any]:
        """Over one transport, first with all replicas idle, then with more and more busy ones."""
        seen: dict[str, Any] = {
            "burst": self.burst(transport),
            "near": self.nodes(self.zoned, transport, "near"),
            "zone": self.nodes(self.zoned, transport, "any"),
            "any": self.nodes(self.anywhere, transport, "any"),
        }
        with tempfile.TemporaryDirectory() as path:
            board = Board(Path(path))
            held = self.fill("near", self.zoned, transport, board)
            seen["near_busy"] = self.nodes(self.zoned, transport, "near")
            held += self.fill("zone", self.anywhere, transport, board)
            seen["zone_busy"] = self.nodes(self.zoned, transport, "near")
            board.release()
            for call in held:
                call.result(timeout_s=30)
        seen["near_again"] = self.nodes(self.zoned, transport, "near")
        return seen

    def burst(self, transport: str) -> dict[str, int]:
        """Twice as many calls as the node takes, before its handle made any: where they ran."""
        with tempfile.TemporaryDirectory() as path:
            board = Board(Path(path))
            held = [self.zoned.hold.remote(transport, path, f"{i}") for i in range(2 * BUSY)]
            eventually(lambda: board.count("start") == len(held), timeout_s=30)
            board.release()
            for call in held:
                call.result(timeout_s=30)
            return {name: board.count(f"on-{node}") for node, name in self.names.items()}

    def fill(self, node: str, caller: Any, transport: str, board: Board) -> list[Any]:
        """Calls that stay on this node until its replica is full."""
        event = next(f"on-{node_id}" for node_id, name in self.names.items() if name == node)
        held: list[Any] = []
        while board.count(event) < BUSY:
            # One that went elsewhere, because the machine is slow and Serve lost patience, may end.
            name = f"{node}-{len(held)}"
            held.append(caller.hold.remote(transport, board.path, name))
            eventually(lambda name=name: board.count("start", name), timeout_s=30)
            if not board.count(event, name):
                board.release(name)
                held[-1].result(timeout_s=30)
        return held


def over_a_controllers_death() -> dict[str, Any]:
    """Traffic while Serve's controller is killed, comes back, and replaces the replica."""
    app = serve_grpc.deployment(**OPTIONS, ray_actor_options=pinned("near"))(Placed)
    app = app.options(name="Steady", max_ongoing_requests=100)
    handle = serve_grpc.run(app.bind(), name="steady", route_prefix=None)
    old = handle.pid.remote().result(timeout_s=20)
    handles = {transport: over(transport, handle) for transport in TRANSPORTS}
    controller = serve.context._global_client._controller
    first = ray.get(controller.get_pid.remote(), timeout=20)
    with traffic({name: lambda h=h: h.pid.remote() for name, h in handles.items()}) as seen:
        ray.kill(controller, no_restart=False)
        during = {name: len(seen[name].answers) for name in handles}
        eventually(lambda: ray.get(controller.get_pid.remote(), timeout=60) != first, timeout_s=60)
        during = {name: len(seen[name].answers) - during[name] for name in handles}
        serve_grpc.run(app.bind(), name="steady", route_prefix=None)
        for name in handles:
            seen[name].wait_for(lambda pid: pid != old)
    return {
        name: {
            "during": during[name],
            "errors": seen[name].errors,
            "first_is_old": seen[name].answers[0] == old,
            "last_is_old": seen[name].answers[-1] == old,
        }
        for name in handles
    }


def over_a_nodes_death(cluster: Cluster, node: Any, locality: Locality) -> dict[str, Any]:
    """One call held on the node that is killed, and calls afterwards."""
    lonely = serve_grpc.get_app_handle("lonely")
    with tempfile.TemporaryDirectory() as path:
        board = Board(Path(path))
        ends: dict[str, list[str]] = {}

        def hold(transport: str) -> None:
            try:
                ends[transport] = [over(transport, lonely).remote(path).result(timeout_s=60)]
            except Exception as error:
                ends[transport] = [kind.__name__ for kind in type(error).__mro__]

        threads = [threading.Thread(target=hold, args=(name,)) for name in TRANSPORTS]
        for thread in threads:
            thread.start()
        eventually(lambda: board.count("start") == len(TRANSPORTS), timeout_s=30)
        cluster.remove_node(node, allow_graceful=False)
        later = {name: locality.until_both_answer(name) for name in TRANSPORTS}
        for thread in threads:
            thread.join()
    return {name: {"held": ends[name], "later": later[name]} for name in TRANSPORTS}


def main() -> None:
    with three_nodes() as (cluster, nodes):
        names = {
            node["NodeID"]: next(name for name in NODES if name in node["Resources"])
            for node in ray.nodes()
        }
        deploy()
        locality = Locality(names)
        seen = {transport: locality.seen(transport) for transport in TRANSPORTS}
        controller = over_a_controllers_death()
        node = over_a_nodes_death(cluster, nodes["far"], locality)
        for name in TRANSPORTS:
            seen[name] |= {"controller": controller[name], "node": node[name]}
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
