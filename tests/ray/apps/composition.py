"""Five deployments in a row, and a value that notes which processes load it."""

from __future__ import annotations

import os
from typing import Any

from ray import serve

import serve_grpc
from tests.ray.compat.behaviours import over

__all__ = ["LINKS", "Link", "Noting", "links_app"]

LINKS = tuple(f"link{i}" for i in range(5))


class Noting:
    """Writes the process id into the file at `path` wherever it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _note_and_make, (self.path,)


def _note_and_make(path: str) -> Noting:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return Noting(path)


class Link:
    """Args: `others`, with the handle of the next link somewhere inside."""

    def __init__(self, name: str, others: dict[str, list[Any]] | None = None) -> None:
        self.name = name
        self.next = others["next"][0] if others is not None else None

    async def add(self, value: int, *, more: int = 1) -> int:
        return value + more

    async def fail(self) -> None:
        raise KeyError("of the first link")

    async def arguments(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    async def kinds(self, *args: Any) -> list[str]:
        return [type(arg).__name__ for arg in args]

    async def chain(self, transports: list[str]) -> list[str]:
        """Names of the links from here on; each hop over the next of `transports`."""
        if not transports:
            return [self.name]
        rest = await over(transports[0], self.next).chain.remote(transports[1:])
        return [self.name, *rest]

    async def call_nested(self, transport: str, handles: dict[str, list[Any]]) -> list[int]:
        """Call each handle in there."""
        found = [handle for listed in handles.values() for handle in listed]
        return [await over(transport, handle).add.remote(i) for i, handle in enumerate(found)]

    async def make(self, path: str) -> Noting:
        return Noting(path)

    async def through(self, value: Noting) -> Noting:
        return value

    async def pid(self, *_: Any) -> int:
        return os.getpid()

    async def pass_on(self, transport: str, path: str) -> dict[str, Any]:
        """Have the next link make a value, pass it through twice, and take its pid."""
        handle = over(transport, self.next)
        response = handle.make.remote(path)
        for _ in range(2):
            response = handle.through.remote(response)
        there = await handle.pid.remote(response)
        return {"here": os.getpid(), "there": there}


def links_app() -> serve.Application:
    """link0 knows link1, and so on."""
    link = serve_grpc.deployment(
        Link,
        max_ongoing_requests=50,
        ray_actor_options={"num_cpus": 0.01},
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=3,
    )
    app = link.options(name=LINKS[-1]).bind(LINKS[-1])
    for name in reversed(LINKS[:-1]):
        app = link.options(name=name).bind(name, {"next": [app]})
    return app
