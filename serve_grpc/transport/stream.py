"""The pump between a session machine and its gRPC stream.

One task writes: it sleeps until something is queued, then writes message after message until the
outbox is empty. Frames queued in one pass of the event loop, or while a write is on its way, share
a message; no timer is involved. Invariant: nobody else writes to the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

__all__ = ["Writer"]


class _Outbox(Protocol):
    def __bool__(self) -> bool: ...
    def take(self) -> bytes: ...
    @property
    def queued_bytes(self) -> int: ...


class Writer:
    """Writes what an outbox holds.

    Args:
        outbox: Where messages come from.
        write: Sends one message; returns when the transport took it.
        before_take: Called before each message is taken, to add what should ride on it.
    """

    def __init__(
        self,
        outbox: _Outbox,
        write: Callable[[bytes], Awaitable[None]],
        before_take: Callable[[], None] | None = None,
    ) -> None:
        self._outbox = outbox
        self._write = write
        self._before_take = before_take
        self._wake: asyncio.Future[None] | None = None
        self._low_water: list[tuple[int, asyncio.Future[None]]] = []

    def kick(self) -> None:
        """Tell that something was queued. Only from the stream's own loop."""
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def run(self) -> None:
        """Write until cancelled, or until the stream breaks with the error of `write`."""
        loop = asyncio.get_running_loop()
        while True:
            while self._outbox:
                if self._before_take is not None:
                    self._before_take()
                await self._write(self._outbox.take())
                if self._low_water:
                    self._release()
            self._wake = loop.create_future()
            await self._wake

    async def flush(self) -> None:
        """Write what is queued, then return. Only while `run` is not running."""
        while self._outbox:
            await self._write(self._outbox.take())

    async def wait_below(self, max_bytes: int) -> None:
        """Return once at most `max_bytes` wait to be written."""
        if self._outbox.queued_bytes > max_bytes:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._low_water.append((max_bytes, waiter))
            await waiter

    def _release(self) -> None:
        queued = self._outbox.queued_bytes
        waiting, self._low_water = self._low_water, []
        for max_bytes, waiter in waiting:
            if waiter.done():
                continue
            if queued <= max_bytes:
                waiter.set_result(None)
            else:
                self._low_water.append((max_bytes, waiter))
