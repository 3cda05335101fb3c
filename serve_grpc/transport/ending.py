"""Ends a server's call from outside of its handler.

Cancelling the handler is not enough: grpc.aio then leaves the call open, with what it has read of
it in memory, until the peer ends it or its connection. So the handler is cancelled and the call
aborted after it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from grpc import StatusCode

from serve_grpc.transport.status import abort

__all__ = ["ABORT_S", "Ending"]

ABORT_S = 2.0


class Ending:
    """Of the call whose handler runs in the current task: `async with` around the handler's work.

    Args:
        context: gRPC's.
    """

    def __init__(self, context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self._context = context
        self._reason = ""

    def end(self, reason: str) -> None:
        """Stop the handler; the peer is told why."""
        if not self._reason:
            self._reason = reason
            self.task.cancel()

    async def __aenter__(self) -> Ending:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        if self._reason and isinstance(error, asyncio.CancelledError):
            # A peer that does not read holds the status back, behind the message being written.
            await asyncio.wait_for(
                abort(self._context, StatusCode.RESOURCE_EXHAUSTED, self._reason), ABORT_S
            )
