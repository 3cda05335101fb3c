"""Handlers that take a stream of numbers or texts from a peer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import serve_grpc
from tests.ray.apps.gated import note, released

__all__ = ["Feeder", "Uploads"]


class Uploads:
    """Each method is one way to take a stream."""

    async def pid(self) -> int:
        """Of this replica."""
        return os.getpid()

    async def total(self, start: Any = None, numbers: Any = None) -> int:
        """The sum of a stream, which is the first argument or `numbers`."""
        stream, base = (start, 0) if numbers is None else (numbers, start)
        return base + sum([number async for number in stream])

    async def echo(self, items: Any) -> AsyncIterator[Any]:
        """Each item, when it comes."""
        async for item in items:
            yield item

    def echo_in_thread(self, items: Any) -> Iterator[Any]:
        """The same in a thread."""
        yield from items

    async def first(self, items: Any) -> Any:
        """The first item."""
        return await anext(items)

    async def note_items(self, items: Any, path: str) -> None:
        """Writes down what happens."""
        try:
            async for item in items:
                note(path, "item", item, 0)
            note(path, "end", "-", 0)
        except serve_grpc.errors.RequestStreamError:
            note(path, "failed", "-", 0)
            raise
        except BaseException:
            note(path, "cancelled", "-", 0)
            raise

    async def held(self, items: Any, path: str) -> int:
        """Reads only when it is let go; the number of items."""
        note(path, "start", "-", 0)
        await released(path, "all")
        return len([item async for item in items])


class Feeder:
    """Uploads without end. Args: `sink`, a handle to `Uploads`."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink.options(_by_reference=False)

    async def pid(self) -> int:
        return os.getpid()

    async def feed(self, path: str) -> None:
        async def items() -> AsyncIterator[str]:
            while True:
                yield "item"
                await asyncio.sleep(0.01)

        await self.sink.note_items.remote(items(), path)
