"""A deployment that says which version of it answers, quickly, slowly and bit by bit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ray import serve

__all__ = ["ITEMS", "Versioned"]

ITEMS = 5
QUICK_S, SLOW_S, ITEM_S = 0.005, 1.0, 0.05

Answer = tuple[str, str]
"""The version, and the replica's id."""


class Versioned:
    """Args: `version`, which every answer has."""

    def __init__(self, version: str) -> None:
        self.answer: Answer = version, serve.get_replica_context().replica_id.unique_id

    async def quick(self) -> Answer:
        await asyncio.sleep(QUICK_S)
        return self.answer

    async def slow(self) -> Answer:
        """Runs for so long that many a replica is told to stop meanwhile."""
        await asyncio.sleep(SLOW_S)
        return self.answer

    async def stream(self) -> AsyncIterator[Answer]:
        for _ in range(ITEMS):
            await asyncio.sleep(ITEM_S)
            yield self.answer
