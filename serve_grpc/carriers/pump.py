"""Writes what a session has queued to its link; the half that both sides' pumps share.

One task writes: it sleeps until something is queued, then writes message after message until the
outbox is empty. Frames queued in one pass of the event loop, or while a write is on its way, share
a message; no timer is involved. A frame that has no company to wait for leaves at once: its message
is handed to the link on the spot, and the task sees the write through. Invariant: messages leave in
the order in which they are taken, one at a time.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from serve_grpc.carriers.counters import Counters

__all__ = ["Writer"]


class _Outbox(Protocol):
    def take(self) -> bytes: ...
    @property
    def queued_bytes(self) -> int: ...


class Writer:
    """Writes what an outbox holds.

    Args:
        outbox: Where messages come from.
        write: `Link.write`, whose first step hands the message over.
        before_take: Called before each message is taken, to add what should ride on it.
        counters: Where messages and bytes are counted.
    """

    def __init__(
        self,
        outbox: _Outbox,
        write: Callable[[bytes], Coroutine[Any, Any, None]],
        before_take: Callable[[], None] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._outbox = outbox
        self._write = write
        self._before_take = before_take
        self._counters = counters or Counters()
        self._wake: asyncio.Future[None] | None = None
        # Set by `kick`, taken by `run`; both are on the link's loop, so there is no lock.
        self._begun: Awaitable[None] | None = None
        self._low_water: list[tuple[int, asyncio.Future[None]]] = []
        self._has_left_in_turn = False

    def kick(self, *, at_once: bool = False) -> None:
        """Tell that something was queued. Only from the link's own loop.

        Args:
            at_once: Nothing else is about to be queued, so do not wait for the loop's next turn.
        """
        wake = self._wake
        if wake is None or not self._outbox.queued_bytes:
            return  # the task is awake, and will see what is queued; or it was seen already
        if at_once and self._begun is None:  # else a write is under way, and only one may be
            # The first step of a write hands the message over; a task could take it only in the
            # loop's next turn (CPython before 3.12 has no eager tasks).
            write = self._write(self._take())
            # `send` runs the coroutine up to its first pause; the task takes over there (`run`).
            try:
                self._begun = _rest(write, write.send(None))
            except StopIteration:
                # It is written. Only who waits for room needs the task, whose turn of the loop is a
                # system call and more.
                if not self._outbox.queued_bytes and not self._low_water:
                    return
            # For the task to raise: who kicks has a call in hand, and is not to blame for the link.
            except Exception as error:
                self._begun = _raise(error)
        # Two kicks may come before the task has its turn.
        if not wake.done():
            wake.set_result(None)

    def kick_item(self) -> None:
        """Tell that an item of a lone stream was queued, behind which more may come in this turn.

        The first of a turn of the loop leaves at once: it may be all that the peer waits for. The
        others share a message.
        """
        if self._has_left_in_turn:
            self.kick()
        else:
            self._has_left_in_turn = True
            asyncio.get_running_loop().call_soon(self._on_next_turn)
            self.kick(at_once=True)

    def _on_next_turn(self) -> None:
        self._has_left_in_turn = False

    def _take(self) -> bytes:
        # Now, not when a frame was queued: the load on a message is that of the moment it leaves.
        if self._before_take is not None:
            self._before_take()
        message = self._outbox.take()
        counters = self._counters
        counters.messages_sent += 1
        counters.bytes_sent += len(message)
        return message

    async def run(self) -> None:
        """Write until cancelled, or until the link breaks with the error of `write`."""
        loop = asyncio.get_running_loop()
        while True:
            if self._begun is not None:
                # First: the link takes one write at a time, and this one is under way.
                begun, self._begun = self._begun, None
                await begun
            while self._outbox.queued_bytes:
                await self._write(self._take())
                self._release()
            # Also after a message that `kick` wrote: the loop above had nothing left to do then.
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
        # Rebuilt, for each waits for a mark of its own; those whose task was cancelled drop out.
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
            # By hand, what a task does at an `await`: a CancelledError must reach the write.
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
