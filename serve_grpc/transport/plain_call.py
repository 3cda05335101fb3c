"""One request through the plain door, and its outputs on their way out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc._generated.replica_pb2 import CallRequest, Error

__all__ = ["PlainCall"]


class PlainCall:
    """One request through `Call` or `CallStream`.

    Attributes:
        trace: W3C trace context of the caller's span, as its metadata had it.
    """

    def __init__(
        self,
        request: CallRequest,
        *,
        is_stream: bool,
        timeout_s: float | None,
        trace: dict[str, str],
    ) -> None:
        self.request = request
        self.is_stream = is_stream
        self.timeout_s = timeout_s
        self.trace = trace
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
