"""Ends what a task does on a link, from outside of the task.

Cancelling the task is not enough: its peer would not hear why, and grpc.aio leaves the call of a
cancelled handler open, with what it has read of it in memory, until the peer ends it or its
connection. So the task is cancelled and the link aborted after it.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any

from serve_grpc.carriers.link import Cause, Link
from serve_grpc.config import LOGGER_NAME

__all__ = ["CutOff"]

logger = logging.getLogger(LOGGER_NAME)


class CutOff:
    """For the work that the current task does on `link`: `async with` around it."""

    def __init__(self, link: Link) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._link = link
        self._reason = ""

    def abort(self, reason: str) -> None:
        """Stop the task; the peer is told why."""
        # Once: a second cancel could hit the task in the midst of the abort below.
        if not self._reason:
            self._reason = reason
            self._task.cancel()

    async def __aenter__(self) -> CutOff:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        # Not after a cancel from elsewhere: the peer is gone by then, or nothing can be written
        # to it, or the loop ends.
        if self._reason and isinstance(error, asyncio.CancelledError):
            logger.debug("a peer is cut off: %s", self._reason)
            await self._link.abort(Cause.LIMIT, self._reason)
