"""A deployment whose calls are counted, logged and named, and which calls another one like it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

import serve_grpc
from tests.ray.apps.gated import Gated
from tests.ray.compat.behaviours import over

__all__ = ["MAX_ONGOING_REQUESTS", "Metered", "metered_app"]

MAX_ONGOING_REQUESTS = 3


class Metered(Gated):
    """Args: `transport`, how it calls `inner`, which it may have."""

    def __init__(self, transport: str, inner: Any = None) -> None:
        super().__init__()
        self.inner = over(transport, inner) if inner is not None else None

    async def echo(self, value: Any) -> Any:
        return value

    async def fail(self) -> None:
        raise ValueError("a bad value")

    async def total(self, numbers: Any) -> int:
        return sum([number async for number in numbers])

    async def items(self, number: int) -> AsyncIterator[int]:
        for i in range(number):
            yield i

    async def request_ids(self, depth: int) -> list[str]:
        """This request's id, and those of the calls it makes in turn."""
        request_id = serve.context._get_serve_request_context().request_id
        logging.getLogger("ray.serve").info("the user says %s", depth)
        if depth == 0:
            return [request_id]
        return [request_id, *await self.inner.request_ids.remote(depth - 1)]

    async def log_file(self) -> str:
        handlers = logging.getLogger("ray.serve").handlers
        targets = [getattr(handler, "target", handler) for handler in handlers]
        return next(t.baseFilename for t in targets if hasattr(t, "baseFilename"))


def metered_app(transport: str, name: str) -> serve.Application:
    """`name` calls `name`Inner."""
    enabled = serve_grpc.deployment(
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0.01},
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=3,
    )(Metered)
    inner = enabled.options(name=f"{name}Inner").bind(transport)
    return enabled.options(name=name).bind(transport, inner)
