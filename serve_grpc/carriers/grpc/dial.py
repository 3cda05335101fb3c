"""A link to one replica over a gRPC stream and a channel of its own.

gRPC's errors end here. Closing follows the order that leaks nothing in grpc.aio: half-close, cancel
the call, close the channel.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Any

import grpc

from serve_grpc.carriers.grpc.credentials import open_channel
from serve_grpc.carriers.link import Cause, LinkLost
from serve_grpc.config import LOGGER_NAME, Settings

__all__ = ["SESSION_METHOD", "ClientLink", "dial", "open_links"]

logger = logging.getLogger(LOGGER_NAME)

SESSION_METHOD = "/serve_grpc.v1.Replica/Session"
CLOSED = "the link is closed"
CLOSE_S = 1.0
"""For a replica to answer that a link is closed in peace."""

_open: weakref.WeakSet[ClientLink] = weakref.WeakSet()


async def dial(address: str, settings: Settings) -> ClientLink:
    """A link to the replica at `address`; it connects when it is first used.

    Raises:
        RuntimeError: TLS is on, and its files are missing.
    """
    return ClientLink(open_channel(address, settings, len(_open)))


def open_links() -> list[ClientLink]:
    """Links of this process that are not closed, for who looks for leaks."""
    return list(_open)


class ClientLink:
    """The caller's end. Is a `Link`."""

    carrier = "grpc"
    memory = None

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        # None as serializers: bytes in, bytes out, no protobuf object around payloads.
        self._call: Any = channel.stream_stream(
            SESSION_METHOD, request_serializer=None, response_deserializer=None
        )()
        self._lost = ""
        self._is_closed = False
        _open.add(self)

    def __repr__(self) -> str:
        return f"<ClientLink {self._call!r}>"

    async def read(self) -> bytes | None:
        """As of `Link`."""
        if self._lost:
            raise LinkLost(self._lost)
        try:
            message = await self._call.read()
            if message is not grpc.aio.EOF:
                return message  # type: ignore[no-any-return]
            # A stream that ends with OK was closed by its handler; any other status is a loss.
            if await self._call.code() is grpc.StatusCode.OK:
                self._lost = CLOSED
                return None
        except grpc.aio.AioRpcError as error:
            raise self._lose(_reason(error.code(), error.details())) from None
        except asyncio.CancelledError:
            # gRPC's for a call that we cancelled: by `abort`, or this task was cancelled in a read.
            if self._lost:
                raise LinkLost(self._lost) from None
            raise
        raise self._lose(_reason(await self._call.code(), await self._call.details()))

    async def write(self, message: bytes) -> None:
        """As of `Link`."""
        if self._lost:
            raise LinkLost(self._lost)
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise self._lose(_reason(error.code(), error.details())) from None
        except asyncio.InvalidStateError:  # the call is over; only `read` asks why
            reason = _reason(await self._call.code(), await self._call.details())
            raise self._lose(reason) from None
        except asyncio.CancelledError:
            if self._lost:
                raise LinkLost(self._lost) from None
            raise

    def _lose(self, reason: str) -> LinkLost:
        self._lost = self._lost or reason
        return LinkLost(self._lost)

    async def abort(self, cause: Cause, reason: str) -> None:
        """As of `Link`; the other end hears that the call was cancelled, and not why."""
        self._lost = self._lost or reason
        self._call.cancel()

    async def close(self) -> None:
        """As of `Link`; the channel is closed however the call ends."""
        if self._is_closed:
            return
        # Before the first await: whoever closes it meanwhile must not half-close it again.
        self._is_closed = True
        try:
            # Of a call that is over, or was aborted, nobody is left to hear the half-close.
            if not (self._lost or self._call.done()):
                await self._half_close()
        finally:
            self._lost = self._lost or CLOSED
            self._call.cancel()
            await self._channel.close()
            _open.discard(self)

    async def _half_close(self) -> None:
        """Return when the replica has read what was written, or has taken too long to."""
        try:
            # Bounded, for a replica that hangs never answers, and the channel would stay open.
            await asyncio.wait_for(self._end_of_call(), CLOSE_S)
        except (asyncio.TimeoutError, grpc.aio.AioRpcError) as error:
            logger.debug("the end of a link was not answered: %r", error)

    async def _end_of_call(self) -> None:
        await self._call.done_writing()
        await self._call.code()


def _reason(code: grpc.StatusCode, details: str | None) -> str:
    return f"{code.name}: {details}"
