"""Where a stream's producer waits for credit: on an event loop, or in a thread of its own."""

from __future__ import annotations

import asyncio
import threading

from serve_grpc.protocol.flow import ProducerWindow

__all__ = ["LoopGate", "ThreadGate"]


class LoopGate:
    """For a generator that runs on the event loop. All methods are called there."""

    def __init__(self, items: int, bytes_: int) -> None:
        self._window = ProducerWindow(items, bytes_)
        self._wake: asyncio.Future[None] | None = None

    async def enter(self, size: int) -> None:
        """Return when an item of `size` bytes may be sent."""
        while not self._window.is_open:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._window.spend(size)

    def grant(self, items: int, bytes_: int) -> None:
        """Let the producer go on."""
        self._window.grant(items, bytes_)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class ThreadGate:
    """For a generator that runs in a thread; `grant` and `close` come from the event loop."""

    def __init__(self, items: int, bytes_: int) -> None:
        self._window = ProducerWindow(items, bytes_)
        self._changed = threading.Condition()
        self._is_closed = False

    def enter(self, size: int) -> bool:
        """Sleep until an item of `size` bytes may be sent; False once the gate is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._window.is_open)
            self._window.spend(size)
            return not self._is_closed

    def grant(self, items: int, bytes_: int) -> None:
        """Let the producer go on."""
        with self._changed:
            self._window.grant(items, bytes_)
            self._changed.notify()

    def close(self) -> None:
        """Let the producer's thread end: nobody wants its items."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
