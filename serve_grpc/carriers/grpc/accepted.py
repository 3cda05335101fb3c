"""The replica's end of a gRPC stream, within its handler.

gRPC's server tells a caller that left in peace and one that is gone alike: `read` gives None, or
the handler's task is cancelled. Abort must end the call of a peer that does not read, too: gRPC
holds the status back behind the message being written, so it is waited for `ABORT_S` only. The call
ends with its handler then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc import StatusCode

from serve_grpc.carriers.grpc.status import abort
from serve_grpc.carriers.link import Cause, LinkLost
from serve_grpc.config import LOGGER_NAME

__all__ = ["ABORT_S", "ServerLink"]

logger = logging.getLogger(LOGGER_NAME)

ABORT_S = 2.0
"""For the status of an abort to leave; a peer that does not read would hold it up for ever."""
CLOSED = "the link is closed"

_STATUS = {
    Cause.LEFT: StatusCode.CANCELLED,
    Cause.LIMIT: StatusCode.RESOURCE_EXHAUSTED,
    Cause.MISDIRECTED: StatusCode.FAILED_PRECONDITION,
    Cause.VERSION: StatusCode.UNIMPLEMENTED,
    Cause.UNAUTHENTICATED: StatusCode.UNAUTHENTICATED,
    Cause.DRAINING: StatusCode.UNAVAILABLE,
    Cause.INVALID: StatusCode.INVALID_ARGUMENT,
}


class ServerLink:
    """The replica's end. Is a `Link`; the handler calls `end_handler` last.

    Args:
        context: gRPC's, of the call; of a handler that reads and writes bytes.
    """

    carrier = "grpc"
    memory = None

    def __init__(self, context: Any) -> None:
        self._context = context
        self._lost = ""
        self._is_closed = False
        self._ended_by: BaseException | None = None

    async def read(self) -> bytes | None:
        """As of `Link`."""
        if self._lost:
            raise LinkLost(self._lost)
        try:
            message = await self._context.read()
        except grpc.aio.BaseError as error:
            raise self._lose(error) from None
        # Also what a pending read gives when the call was aborted here.
        if message is grpc.aio.EOF:
            if self._lost:  # aborted while it was read
                raise LinkLost(self._lost)
            self._lost = CLOSED
            return None
        return message  # type: ignore[no-any-return]

    async def write(self, message: bytes) -> None:
        """As of `Link`."""
        if self._lost:
            raise LinkLost(self._lost)
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            raise self._lose(error) from None

    def _lose(self, error: BaseException) -> LinkLost:
        self._lost = self._lost or repr(error)
        return LinkLost(self._lost)

    async def abort(self, cause: Cause, reason: str) -> None:
        """As of `Link`; the other end hears a status for the cause, and the reason."""
        # gRPC takes one abort for a call and raises for a second.
        if self._is_closed or self._ended_by is not None:
            return
        self._lost = self._lost or reason
        # Stands if the wait below takes too long: a handler that returned would end with OK.
        self._ended_by = asyncio.CancelledError()
        try:
            # Not raised here, or the pump's own clean-up would not run: `end_handler` does it.
            await asyncio.wait_for(abort(self._context, _STATUS[cause], reason), ABORT_S)
        except grpc.aio.BaseError as error:  # an AbortError, or the call is over already
            self._ended_by = error
        except asyncio.TimeoutError:
            logger.debug("a peer does not read the end of its call: %s", reason)

    async def close(self) -> None:
        """As of `Link`; the call ends with its handler."""
        self._is_closed = True
        self._lost = self._lost or CLOSED

    def end_handler(self) -> None:
        """Let gRPC have back what it raised for the abort: it wants that to leave the handler.

        Raises:
            BaseException: What the abort raised, or a CancelledError if it took too long.
        """
        if self._ended_by is not None:
            raise self._ended_by
