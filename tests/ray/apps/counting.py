"""Replicas that each keep a count, and one that calls them through a pin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ray import serve

from tests.ray.apps.gated import Gated

__all__ = ["Counting", "Pinning"]


class Counting(Gated):
    """Counts its calls. Its `__call__` stays until the test lets it go."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self.count = 0

    async def add(self, _: Any = None) -> tuple[str, int]:
        """Who it is, and its count."""
        self.count += 1
        return serve.get_replica_context().replica_id.unique_id, self.count

    async def add_each(self, times: int) -> AsyncIterator[tuple[str, int]]:
        """As `add`, for each item."""
        for _ in range(times):
            yield await self.add()


class Pinning:
    """Args: `counting`, a handle, by value or not."""

    def __init__(self, counting: Any) -> None:
        self.counting = counting.options(_by_reference=False)

    async def add(self, times: int) -> list[tuple[str, int]]:
        """Calls of one pin."""
        async with self.counting.pin() as pinned:
            return [await pinned.add.remote() for _ in range(times)]

    async def add_at(self, replica_id: str) -> tuple[str, int]:
        """A call that is bound."""
        return await self.counting.options(replica_id=replica_id).add.remote()

    async def add_with(self, handle: Any) -> tuple[str, int]:
        """A call of a handle that came here by pickle."""
        return await handle.add.remote()
