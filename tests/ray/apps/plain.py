"""A class that knows nothing of the package."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from tests.ray.apps.failures import raise_kind

__all__ = ["Plain"]


class Plain:
    """A few methods."""

    async def __call__(self, value: Any = None) -> Any:
        return value

    async def items(self, number: int) -> AsyncIterator[int]:
        for i in range(number):
            yield i

    async def fail(self, kind: str) -> None:
        raise_kind(kind)

    async def fail_in_stream(self, kind: str) -> AsyncIterator[int]:
        yield 0
        raise_kind(kind)

    async def large(self, size: int) -> bytes:
        return b"x" * size

    async def pid(self) -> int:
        return os.getpid()

    async def hold(self) -> None:
        await asyncio.Event().wait()

    async def hold_stream(self) -> AsyncIterator[int]:
        yield 0
        await self.hold()
