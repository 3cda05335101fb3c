"""One request through the plain door, its outputs on their way out, and how it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from serve_grpc._generated.replica_pb2 import CallRequest, Error
from serve_grpc.carriers.grpc.plain_input import PlainInput
from serve_grpc.carriers.grpc.status import abort
from serve_grpc.protocol.status import shortened

__all__ = ["PlainCall", "abort_call"]

ERROR_KEY = "serve-grpc-error-bin"

_STATUS = {
    Error.INTERNAL: grpc.StatusCode.INTERNAL,
    Error.USER_EXCEPTION: grpc.StatusCode.UNKNOWN,
    Error.SERIALIZATION: grpc.StatusCode.INVALID_ARGUMENT,
    Error.MESSAGE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Error.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Error.CANCELLED: grpc.StatusCode.CANCELLED,
    Error.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Error.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Error.DRAINING: grpc.StatusCode.UNAVAILABLE,
}


class PlainCall:
    """One request through `Call` or `CallStream`.

    Attributes:
        trace: W3C trace context of the caller's span, as its metadata had it.
        input: The stream among its arguments; None without.
    """

    def __init__(
        self,
        request: CallRequest,
        *,
        is_stream: bool,
        timeout_s: float | None,
        trace: dict[str, str],
        input_: PlainInput | None = None,
    ) -> None:
        self.request = request
        self.is_stream = is_stream
        self.timeout_s = timeout_s
        self.trace = trace
        self.input = input_
        self._outputs: asyncio.Queue[bytes | Error | None] = asyncio.Queue()
        self.on_taken: Callable[[int], None] | None = None
        """Called with the size of each item that was written, to grant the producer more."""

    def put(self, payload: bytes) -> None:
        """One result or item."""
        self._outputs.put_nowait(payload)

    def end(self, error: Error | None = None) -> None:
        """Nothing follows, because of `error` or because all is said."""
        self._outputs.put_nowait(error)

    async def next(self) -> bytes | Error | None:
        """The next output; an Error or None is the last."""
        return await self._outputs.get()


async def abort_call(context: Any, error: Error) -> NoReturn:
    """End a call with the gRPC status of `error`, and `error` itself in the trailer."""
    details = f"{error.type_name}: {error.message}" if error.type_name else error.message
    trailer = ((ERROR_KEY, shortened(error).SerializeToString()),)
    await abort(context, _STATUS[error.code], details, trailer)
