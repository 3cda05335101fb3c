"""Calls under Ray's own tracing, from every kind of caller.

Prints, as JSON, for each transport and caller the Ray trace context that the handler found.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve

import serve_grpc
from tests.ray.apps.traced import Leaf
from tests.ray.compat.behaviours import BY_REFERENCE, OURS, over
from tests.ray.instance import free_port, start_ray

OPTIONS = {"ray_actor_options": {"num_cpus": 0.01}}


def call(leaf: Any, transport: str) -> Any:
    """What a handler finds of a call that is made here."""
    from tests.ray.compat.behaviours import over

    return over(transport, leaf).remote().result(timeout_s=20)


class Middle:
    """A caller in a replica; it tells what it found itself, too."""

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf

    async def on_loop(self, transport: str) -> Any:
        from tests.ray.compat.behaviours import over

        return [self._found(), await over(transport, self.leaf).remote()]

    def in_thread(self, transport: str) -> Any:
        return [self._found(), call(self.leaf, transport)]

    def _found(self) -> Any:
        from ray.serve.context import _get_serve_request_context

        return _get_serve_request_context()._ray_trace_ctx


class Caller:
    """A caller in an actor."""

    def call(self, leaf: Any, transport: str) -> Any:
        return call(leaf, transport)


def main() -> None:
    start_ray(num_cpus=4, _tracing_startup_hook="tests.ray.apps.traced:trace_in_ray")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        enabled = serve_grpc.deployment(**OPTIONS)
        app = enabled(Middle).bind(enabled(Leaf).bind())
        middle = serve_grpc.run(app, name="traced", route_prefix=None)
        leaf = serve_grpc.get_deployment_handle("Leaf", "traced")
        task = ray.remote(num_cpus=0.01)(call)
        actor = ray.remote(num_cpus=0.01)(Caller).remote()
        print(
            json.dumps(
                {
                    transport: {
                        kind: found(transport)
                        for kind, found in _callers(leaf, over(transport, middle), task, actor)
                    }
                    for transport in (BY_REFERENCE, OURS)
                }
            )
        )
    finally:
        ray.shutdown()


def _callers(
    leaf: Any, middle: Any, task: Any, actor: Any
) -> list[tuple[str, Callable[[str], Any]]]:
    def in_thread(transport: str) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call, leaf, transport).result()

    return [
        ("driver", lambda transport: call(leaf, transport)),
        ("thread", in_thread),
        ("task", lambda transport: ray.get(task.remote(leaf, transport))),
        ("actor", lambda transport: ray.get(actor.call.remote(leaf, transport))),
        ("replica", lambda transport: middle.on_loop.remote(transport).result(timeout_s=20)),
        ("replica's thread", lambda t: middle.in_thread.remote(t).result(timeout_s=20)),
    ]


if __name__ == "__main__":
    main()
