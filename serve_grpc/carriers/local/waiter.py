"""What the reader of a link waits for: it goes on in the very turn in which the bytes come.

The task that waits for an `asyncio.Future` goes on in the loop's turn after the one that resolved
it, and a turn is a system call and more. This one has what a task needs of a future (asyncio tells
by `_asyncio_future_blocking` that something can be waited for), and runs the task at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

__all__ = ["Waiter"]


class Waiter:
    """Awaited by one task, once. Lives on the running loop."""

    __slots__ = (
        "_asyncio_future_blocking",
        "_callback",
        "_context",
        "_is_cancelled",
        "_is_done",
        "_loop",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Waiter], object] | None = None
        self._context: Context | None = None
        self._is_done = False
        self._is_cancelled = False

    # ------------------------------------------------------------ for who wakes

    def wake(self, *, at_once: bool) -> None:
        """Let the task go on; nothing happens the second time.

        Args:
            at_once: It runs before this returns. Only where no other task runs, as in a callback
                of the loop; else it runs in the loop's next turn.
        """
        if self._is_done:
            return
        self._is_done = True
        callback, context = self._callback, self._context
        if callback is None:
            return  # nobody waits yet; who begins to, does not have to
        if at_once and context is not None:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)

    # ------------------------------------------------------------ for the task that waits

    def __await__(self) -> Generator[Waiter, None, None]:
        if not self._is_done:
            self._asyncio_future_blocking = True
            yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """As of a future."""
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Waiter], object], *, context: Context | None = None
    ) -> None:
        """As of a future; the task gives the callback that runs it."""
        self._callback = callback
        self._context = context

    def cancel(self, msg: Any = None) -> bool:
        """As of a future."""
        if self._is_done:
            return False
        self._is_cancelled = True
        # By the loop: who cancels is a task most often, and one task cannot run inside another.
        self.wake(at_once=False)
        return True

    def result(self) -> None:
        """As of a future."""
        if self._is_cancelled:
            raise asyncio.CancelledError
