"""Who waits for something: a task on an event loop, by a future, or a thread, by an event."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from serve_grpc.mailbox import mailbox_of

__all__ = ["Waiter", "Waiters", "wake"]

Waiter = asyncio.Future[None] | threading.Event


class Waiters:
    """Tasks and threads that wait for news, and look for themselves what they are.

    There is no lock. Who waits puts its waiter down before it looks again; who has news writes them
    before it calls `wake`; so one of them always sees the other.
    """

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []

    def __repr__(self) -> str:
        return f"<Waiters {len(self._waiters)}>"

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def wake(self) -> None:
        """Let all of them look again; from any thread."""
        while self._waiters:
            try:
                # One by one off the one list: two threads may have news.
                waiter = self._waiters.pop(0)
            except IndexError:
                return
            wake(waiter, asyncio._get_running_loop())

    async def wait(self, has_news: Callable[[], bool]) -> None:
        """Return once `has_news()` holds; on any event loop."""
        while not has_news():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                if not has_news():  # looked at again, now that the waiter is down
                    await waiter
            finally:
                self._forget(waiter)

    def wait_blocking(self, has_news: Callable[[], bool]) -> None:
        """As `wait`, for a thread."""
        while not has_news():
            waiter = threading.Event()
            self._waiters.append(waiter)
            if not has_news():  # as above
                waiter.wait()
            self._forget(waiter)

    def _forget(self, waiter: Waiter) -> None:
        try:
            self._waiters.remove(waiter)
        except ValueError:
            return  # it was woken


def wake(waiter: Waiter, running_loop: asyncio.AbstractEventLoop | None) -> None:
    """Let who waits look again.

    Args:
        waiter: Of any loop or thread.
        running_loop: The one that this is called on; None from any other place.
    """
    if isinstance(waiter, threading.Event):
        waiter.set()
        return
    loop = waiter.get_loop()
    if loop is running_loop:
        if not waiter.done():
            waiter.set_result(None)
        return
    try:
        mailbox_of(loop).post(_resolve, waiter)
    except RuntimeError:
        return  # the loop is closed, and with it whoever waited


def _resolve(future: asyncio.Future[None]) -> None:
    # Done: the task that waited was cancelled before this turn.
    if not future.done():
        future.set_result(None)
