"""Deployments whose requests and results are over the message limit, which is 1 MiB here."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

import serve_grpc
from serve_grpc._serve import store
from tests.ray.apps.references import known

__all__ = ["LIMIT", "SMALL", "Caller", "Oversize", "Waits", "array", "echo_app"]

LIMIT = 1024 * 1024
SMALL: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.01}}


def array(seed: int = 0) -> np.ndarray:
    """An array over the limit."""
    return np.arange(seed, seed + 300_000, dtype=np.float64)


class Oversize:
    """Args: `other`, another one of these, called by value."""

    def __init__(self, other: Any = None) -> None:
        self.other = None if other is None else other.options(_by_reference=False)
        self.calls = 0

    async def echo(self, value: Any) -> Any:
        self.calls += 1
        return value

    def echo_in_thread(self, value: Any) -> Any:
        return value

    async def size(self, value: Any) -> int:
        return len(value)

    async def add_one(self, value: np.ndarray) -> np.ndarray:
        value += 1  # of an array that is not writable: ValueError
        return value

    async def items(self, sizes: list[int], *rest: Any) -> AsyncIterator[bytes]:
        for size in sizes:
            yield b"x" * size

    async def pass_on(self, value: Any) -> Any:
        """Give the other one a response of its own, unopened."""
        return await self.other.echo.remote(self.other.echo.remote(value))

    async def lend(self, box: list[Any], *rest: Any) -> list[Any]:
        """A ref in a result over the limit."""
        return [ray.put(len(await box[0])), b"x" * (LIMIT + 1)]

    async def hang(self, value: Any, path: str) -> None:
        self._is_first(path)
        await asyncio.Event().wait()

    async def die_once(self, value: Any, path: str) -> int:
        if self._is_first(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(value)

    def _is_first(self, path: str) -> bool:
        is_first = not Path(path).exists()
        Path(path).touch()
        return is_first

    async def echo_late(self, value: Any, path: str) -> Any:
        self._is_first(path)
        await asyncio.sleep(1)
        return value

    async def pid(self) -> int:
        return os.getpid()

    async def count(self) -> int:
        return self.calls

    async def known(self) -> list[str]:
        return list(known())


class Waits(Oversize):
    """Fetches a request only once there is a file of this name. Args: `go`."""

    def __init__(self, go: str) -> None:
        super().__init__()
        fetch = store.fetch

        def late(ref: Any, is_wanted: Any) -> Any:
            Path(go + ".fetches").touch()
            while not Path(go).exists():
                time.sleep(0.01)
            return fetch(ref, is_wanted)

        store.fetch = late


@ray.remote(num_cpus=0.01)
class Caller:
    """A process that calls. Args: `handle`."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.held: Any = None

    def pid(self) -> int:
        return os.getpid()

    def start(self) -> None:
        self.held = self.handle.size.remote(array())


def echo_app(name: str, application: str, kind: Any = Oversize, *args: Any, **options: Any) -> Any:
    """Run one of them; a handle by value."""
    options = {**SMALL, "max_ongoing_requests": 100, **options}
    app = serve_grpc.deployment(kind, name=name, **options).bind(*args)
    return serve_grpc.run(app, name=application, route_prefix=None).options(_by_reference=False)
