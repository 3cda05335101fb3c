"""The user's code in a thread, which nothing can stop once it has begun.

anyio's wait for a thread is not shielded from asyncio's `Task.cancel`: it would end at once, and
anyio's limiter would count the thread as free while it runs. So a task that waits here is cancelled
only after `call_off` said that the code will not run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from anyio import to_thread

__all__ = ["ThreadCall"]


class ThreadCall:
    """Calls `function(*args, **kwargs)` in a thread of the pool that Serve uses (anyio's)."""

    def __init__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._result: Any = None
        self._error: BaseException | None = None
        # Whoever gets it decides: the thread that begins, or the loop that calls it off.
        self._is_decided = threading.Lock()

    async def run(self) -> Any:
        """What the function returns, in the caller's context; what it raises."""
        await to_thread.run_sync(self._begin)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback would keep this frame, and this frame the error
        return self._result

    def _begin(self) -> None:
        if not self._is_decided.acquire(blocking=False):
            return  # called off; nobody waits for it
        try:
            self._result = self._function(*self._args, **self._kwargs)
        except BaseException as error:
            # Not by way of anyio: it asks what kind of exception it is, and not all of them answer.
            self._error = error

    def call_off(self) -> bool:
        """Keep the function from being called; False if it was."""
        return self._is_decided.acquire(blocking=False)
