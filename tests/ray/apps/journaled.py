"""Handlers that write down when they start and end, for a checker that joins this with what
callers saw. The notes are those of `tests.ray.apps.gated`, whose `Board` reads them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import serve_grpc
from tests.ray.apps.gated import note

__all__ = ["JOURNALED", "Journaled"]


class Journaled:
    """Args: `inner`, a handle that `through` calls in turn."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner.options(_by_reference=False) if inner is not None else None
        self.running = 0

    def _begin(self, path: str, name: str) -> None:
        self.running += 1
        note(path, "start", name, self.running)

    def _finish(self, path: str, name: str, event: str) -> None:
        self.running -= 1
        note(path, event, name, self.running)

    async def __call__(self, path: str, name: str, work_s: float = 0.0) -> str:
        """Work without holding the loop, then answer with the name."""
        self._begin(path, name)
        event = "cancelled"
        try:
            await asyncio.sleep(work_s)
            event = "end"
        finally:
            self._finish(path, name, event)
        return name

    async def stream(
        self, path: str, name: str, items: int, pause_s: float = 0.0
    ) -> AsyncIterator[str]:
        """Items "name/0", "name/1", ..."""
        self._begin(path, name)
        event = "cancelled"
        try:
            for number in range(items):
                yield f"{name}/{number}"
                await asyncio.sleep(pause_s)
            event = "end"
        finally:
            self._finish(path, name, event)

    async def through(self, path: str, name: str, work_s: float = 0.0) -> str:
        """The same work, one deployment further in."""
        self._begin(path, f"outer-{name}")
        event = "cancelled"
        try:
            answer: str = await self.inner.remote(path, name, work_s)
            event = "end"
        finally:
            self._finish(path, f"outer-{name}", event)
        return answer

    async def block(self, path: str, name: str, work_s: float) -> str:
        """Hold the event loop."""
        self._begin(path, name)
        time.sleep(work_s)  # noqa: ASYNC251
        self._finish(path, name, "end")
        return name

    async def digest(self, data: bytes) -> str:
        """Of what arrived."""
        return hashlib.sha256(data).hexdigest()

    async def echo(self, value: Any) -> Any:
        """The value."""
        return value

    async def pid(self) -> int:
        """Of the replica's process."""
        return os.getpid()


JOURNALED = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=20,
    health_check_period_s=0.5,
    max_ongoing_requests=500,
)(Journaled)
"""To be run with `.options(num_replicas=..., ...)`."""
