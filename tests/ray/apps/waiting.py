"""Callers in processes of their own, and deployments to wait for."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import ray

import serve_grpc
from tests.ray.compat.behaviours import over

__all__ = ["Broken", "CallerProcess", "Relay"]


class Broken:
    """Never comes up."""

    def __init__(self) -> None:
        raise RuntimeError("broken on purpose")


class Relay:
    """Calls another deployment for its caller."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, transport: str, *args: Any) -> Any:
        return await over(transport, self.inner).remote(*args)


class CallerProcess:
    """A Ray actor that calls deployments; its environment has the flags that handles read."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = {}

    def start(self, key: str, transport: str, handle: Any, path: str, number: int) -> None:
        """Make so many calls of a `Gated`."""
        handle = over(transport, handle)
        self.calls[key] = [handle.remote(path, f"{i}") for i in range(number)]

    def finish(self, key: str) -> list[str]:
        return [response.result(timeout_s=60) for response in self.calls.pop(key)]

    def rpcs_to_controller(
        self, transport: str, names: tuple[str, str], handles: int, seconds: float
    ) -> float:
        """How often a second this process calls Serve's controller while so many handles are got,
        used once, and kept for `seconds`."""
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        counted: Counter[str] = Counter()
        remote = ray.actor.ActorMethod._remote

        def counting(method: Any, *args: Any, **kwargs: Any) -> Any:
            if method._actor._actor_id == controller._actor_id:
                counted[method._method_name] += 1
            return remote(method, *args, **kwargs)

        started_s = time.monotonic()
        ray.actor.ActorMethod._remote = counting
        try:
            held = [
                over(transport, serve_grpc.get_deployment_handle(*names)) for _ in range(handles)
            ]
            for response in [handle.pid.remote() for handle in held]:
                response.result(timeout_s=60)
            time.sleep(seconds)
        finally:
            ray.actor.ActorMethod._remote = remote
        return counted.total() / (time.monotonic() - started_s)

    def calls_of_evicted_handle(self, transport: str, names: tuple[str, str]) -> list[bool]:
        """Whether calls of a handle work, and of one got anew, after it fell out of the cache."""
        first = over(transport, serve_grpc.get_deployment_handle(*names))
        pids = [first.pid.remote().result(timeout_s=60)]
        for i in range(30):
            serve_grpc.get_deployment_handle(f"none-{i}", "none", _check_exists=False)
        second = over(transport, serve_grpc.get_deployment_handle(*names))
        return [handle.pid.remote().result(timeout_s=60) in pids for handle in (first, second)]
