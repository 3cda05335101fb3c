"""Batches and multiplexed models, which say what they were made of."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

import serve_grpc
from tests.ray.compat.behaviours import over

__all__ = ["batching_app"]


class Batches:
    """Each batched call gives [its value, sizes of its batch, ids of the batch's requests]."""

    def __init__(self, models: Any) -> None:
        self.models = models
        self.sizes: list[int] = []
        self.cancelled: list[Any] = []
        self.noted_so_far: list[Any] = []

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=5)
    async def full(self, values: list[Any]) -> list[Any]:
        contexts = serve.context._get_serve_batch_request_context()
        ids = [context.request_id for context in contexts]
        return [[value, len(values), ids] for value in values]

    async def noted(self, value: Any) -> list[Any]:
        self.noted_so_far.append(value)
        try:
            got: list[Any] = await self.full(value)
        except asyncio.CancelledError:
            self.cancelled.append(value)
            raise
        return got

    async def waiting(self) -> list[Any]:
        return self.noted_so_far

    async def were_cancelled(self) -> list[Any]:
        return self.cancelled

    @serve.batch(max_batch_size=100, batch_wait_timeout_s=0.2)
    async def partial(self, values: list[Any]) -> list[Any]:
        self.sizes.append(len(values))
        if "bad" in values:
            raise ValueError("a bad value in the batch")
        return [[value, len(values)] for value in values]

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=5)
    async def _counted(self, ends: list[int]) -> AsyncIterator[list[Any]]:
        for i in range(max(ends)):
            yield [[i, len(ends)] if i < end else StopIteration for end in ends]

    async def counted(self, end: int) -> AsyncIterator[Any]:
        async for item in self._counted(end):
            yield item

    async def reset(self) -> list[int]:
        """Sizes of the batches of `partial` since the last time."""
        sizes, self.sizes = self.sizes, []
        return sizes

    async def by_models(self, transport: str, model_ids: list[str]) -> list[Any]:
        """As a caller of the models: the results for these ids, asked for at once."""
        models = over(transport, self.models)
        calls = [models.options(multiplexed_model_id=name).remote() for name in model_ids]
        return list(await asyncio.gather(*calls))


class Models:
    """Holds two models at a time. Calls give [pid, model id, loads of it, models held]."""

    def __init__(self) -> None:
        self.loads: dict[str, int] = {}
        self.held: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> str:
        self.loads[model_id] = self.loads.get(model_id, 0) + 1
        self.held = [*self.held, model_id][-2:]
        return model_id

    async def __call__(self, wait_s: float = 0.0) -> list[Any]:
        model = await self.load(serve.get_multiplexed_model_id())
        await asyncio.sleep(wait_s)
        return [os.getpid(), model, self.loads[model], self.held]

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.3)
    async def batched(self, values: list[int]) -> list[Any]:
        model_id = serve.get_multiplexed_model_id()
        return [[value, model_id, len(values)] for value in values]

    def in_thread(self) -> str:
        return serve.get_multiplexed_model_id()

    async def items(self, number: int) -> AsyncIterator[str]:
        for _ in range(number):
            yield serve.get_multiplexed_model_id()


def batching_app() -> serve.Application:
    """One replica that batches, two that hold models."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0.01},
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 3,
    }
    models = serve_grpc.deployment(**options, num_replicas=2, max_ongoing_requests=4)(Models)
    batches = serve_grpc.deployment(**options, max_ongoing_requests=50)(Batches)
    return batches.bind(models.bind())
