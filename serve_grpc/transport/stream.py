"""The pump between a session machine and its gRPC stream.

One task writes: it sleeps until something is queued, then writes message after message until the
outbox is empty. Frames queued in one pass of the event loop, or while a write is on its way, share
a message; no timer is involved. A frame that has no company to wait for leaves at once: its message
is handed to gRPC on the spot, and the task sees the write through. Invariant: messages leave in the
order in which they are taken, one at a time.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from serve_grpc.transport.traffic import Traffic

__all__ = ["Writer"]


class _Outbox(Protocol):
    def take(self) -> bytes: ...
    @property
    def queued_bytes(self) -> int: ...


class Writer:
    """Writes what an outbox holds.

    Args:
        outbox: Where messages come from.
        write: Sends one message; returns when the transport took it.
        before_take: Called before each message is taken, to add what should ride on it.
        traffic: Where messages and bytes are counted.
    """

    def __init__(
        self,
        outbox: _Outbox,
        write: Callable[[bytes], Coroutine[Any, Any, None]],
        before_take: Callable[[], None] | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._outbox = outbox
        self._write = write
        self._before_take = before_take
        self._traffic = traffic or Traffic()
        self._wake: asyncio.Future[None] | None = None
        self._begun: Awaitable[None] | None = None
        self._low_water: list[tuple[int, asyncio.Future[None]]] = []

    def kick(self, *, at_once: bool = False) -> None:
        """Tell that something was queued. Only from the stream's own loop.

        Args:
            at_once: Nothing else is about to be queued, so do not wait for the loop's next turn.
        """
        wake = self._wake
        if wake is None or not self._outbox.queued_bytes:
            return
        if at_once and self._begun is None:
            # The first step of a write hands the message to gRPC; a task could take it only in the
            # loop's next turn (CPython before 3.12 has no eager tasks).
            write = self._write(self._take())
            try:
                self._begun = _rest(write, write.send(None))
            except StopIteration:
                pass  # it is written
            except Exception as error:
                self._begun = _raise(error)
        if not wake.done():
            wake.set_result(None)

    def _take(self) -> bytes:
        if self._before_take is not None:
            self._before_take()
        message = self._outbox.take()
        traffic = self._traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += len(message)
        return message

    async def run(self) -> None:
        """Write until cancelled, or until the stream breaks with the error of `write`."""
        loop = asyncio.get_running_loop()
        while True:
            if self._begun is not None:
                begun, self._begun = self._begun, None
                await begun
            while self._outbox.queued_bytes:
                await self._write(self._take())
                self._release()
            self._release()
            self._wake = loop.create_future()
            await self._wake
            self._wake = None  # awake: whatever is queued from now on, this task sees

    async def wait_below(self, max_bytes: int) -> None:
        """Return once at most `max_bytes` wait to be written."""
        if self._outbox.queued_bytes > max_bytes:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._low_water.append((max_bytes, waiter))
            await waiter

    def _release(self) -> None:
        if not self._low_water:
            return
        queued = self._outbox.queued_bytes
        waiting, self._low_water = self._low_water, []
        for max_bytes, waiter in waiting:
            if waiter.done():
                continue
            if queued <= max_bytes:
                waiter.set_result(None)
            else:
                self._low_water.append((max_bytes, waiter))


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that was driven, by hand, to where it waits for `waits_for`."""
    while True:
        try:
            try:
                value = yield waits_for
            except BaseException as thrown:
                waits_for = coroutine.throw(thrown)
            else:
                waits_for = coroutine.send(value)
        except StopIteration:
            return


async def _raise(error: Exception) -> None:
    raise error
