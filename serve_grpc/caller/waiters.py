"""Who waits for a call: a task on an event loop, or a thread without one."""

from __future__ import annotations

import asyncio
import threading

from serve_grpc.transport.mailbox import mailbox_of

__all__ = ["AsyncWaiter", "ThreadWaiter"]


class AsyncWaiter:
    """A consumer on an event loop."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def wake(self, transport_loop: asyncio.AbstractEventLoop) -> None:
        """Let it look again; called on the transport's loop."""
        if self._loop is transport_loop:
            self._set()
            return
        try:
            mailbox_of(self._loop).post(self._set)
        except RuntimeError:
            return  # the loop is closed, and with it whoever waited

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class ThreadWaiter:
    """A consumer in a thread without a loop."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def wake(self, _: asyncio.AbstractEventLoop) -> None:
        """Let it look again."""
        self.event.set()
