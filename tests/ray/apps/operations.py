"""An application to operate on: it says its version, configuration and process.

`app` and `built` are what config files name, as `import_path`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

import serve_grpc
from tests.ray.compat.behaviours import over

__all__ = ["OPTIONS", "AskingActor", "Back", "Front", "Relay", "app", "ask_in_a_task", "built"]

OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "max_ongoing_requests": 50,
}


class Back:
    """Args: `version`, which every answer has."""

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.word = ""
        self.running = 0

    def reconfigure(self, config: dict[str, str]) -> None:
        self.word = config["word"]

    async def __call__(self) -> list[Any]:
        return [self.version, self.word, os.getpid()]

    async def echo(self, value: Any) -> Any:
        return value

    async def company(self) -> int:
        """Takes a moment; how many of these calls run, this one included."""
        self.running += 1
        running = self.running
        await asyncio.sleep(0.1)
        self.running -= 1
        return running


class Front:
    """Args: `back`, whose answers it passes on."""

    def __init__(self, back: Any) -> None:
        self.back = back

    async def ask(self, transport: str) -> list[Any]:
        answer: list[Any] = await over(transport, self.back).remote()
        return answer


class Relay:
    """Args: `inner`, a handle; `by_reference`, how to use it. Needs no cluster."""

    def __init__(self, inner: Any, by_reference: bool) -> None:
        self.inner = inner.options(_by_reference=by_reference)

    async def __call__(self, value: Any) -> Any:
        return await self.inner.remote(value)

    async def fail(self, kind: str) -> Any:
        return await self.inner.fail.remote(kind)

    async def items(self, number: int) -> AsyncIterator[int]:
        async for item in self.inner.options(method_name="items", stream=True).remote(number):
            yield item


def built(args: dict[str, str]) -> serve.Application:
    """An application that knew nothing of us; `args` come from the config file."""
    back = serve.deployment(**OPTIONS)(Back).bind(args["version"])
    return serve_grpc.enable(serve.deployment(**OPTIONS)(Front).bind(back))


app = built({"version": "1"})


@ray.remote(num_cpus=0.01)
def ask_in_a_task(transport: str, handle: Any, value: Any) -> Any:
    """Calls `echo`, and blocks for the answer."""
    return over(transport, handle).echo.remote(value).result(timeout_s=30)


@ray.remote(num_cpus=0.01)
class AskingActor:
    """Calls `echo` from the event loop of an actor that is no replica."""

    async def ask(self, transport: str, handle: Any, values: list[Any]) -> list[Any]:
        echo = over(transport, handle).echo
        return list(await asyncio.gather(*(echo.remote(value) for value in values)))
