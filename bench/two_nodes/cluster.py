"""Two Ray nodes on this machine: the callers on the one, what they call on the other.

Each node has a raylet and an object store of its own, so what travels by reference is sent from one
store to the other, and serve_grpc has no local lane. Only the network between them is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.handle import DeploymentHandle

from bench.load.window import Counted, Window
from bench.on_serve.apps import Callee, Caller, Job, WindowFailed
from bench.on_serve.sides import opted_in, pids_of
from bench.plan.contenders import Side, parse

__all__ = ["Pair", "two_nodes"]

HERE, THERE = "here", "there"
STORE_BYTES = 2 * 1024**3
"""Of each node: a few arrays of 100 MB, and those whose references are still being dropped."""
MEASURE_S = 120.0


@contextmanager
def two_nodes() -> Iterator[None]:
    """The cluster, and Serve on it; both end with the block."""
    cluster = Cluster()
    try:
        for name in (HERE, THERE):
            cluster.add_node(
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                resources={name: 1},
            )
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        serve.start(proxy_location="Disabled")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


class Pair:
    """A caller here, and what it calls there.

    Args:
        side: Whether they have serve_grpc.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._app = f"callee-{side}"
        callee = serve.deployment(max_ongoing_requests=100, ray_actor_options=_on(THERE))(Callee)
        caller = serve.deployment(max_ongoing_requests=10, ray_actor_options=_on(HERE))(Caller)
        serve.run(opted_in(callee.bind(), side), name=self._app, route_prefix=None)
        handle = serve.run(caller.bind(), name=f"caller-{side}", route_prefix=None)
        self._caller: DeploymentHandle = handle.options(_by_reference=True)

    async def measure(self, contender: str, method: str, size: int, window: Window) -> Counted:
        """One window of calls with an array of `size` bytes.

        Raises:
            WindowFailed: A call failed.
            RuntimeError: Something else than a contender's own carrier carried them.
        """
        callee = serve.get_app_handle(self._app)
        pids = await pids_of(callee, self._side)
        job = Job(contender, self._app, method, "numpy", size, window, pids)
        response: Any = self._caller.measure.remote(job)
        counted: Counted | WindowFailed = await response
        if isinstance(counted, WindowFailed):
            raise counted
        if counted.carrier != parse(contender).carrier:
            raise RuntimeError(f"{contender} was carried by {counted.carrier!r}")
        return counted


def _on(node: str) -> dict[str, Any]:
    return {"num_cpus": 0.01, "resources": {node: 0.01}}
