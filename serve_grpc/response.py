"""What `handle.remote()` returns: Ray Serve's response classes, with or without our transport.

`DeploymentResponse` and `DeploymentResponseGenerator` are Serve's own, as subclasses. The by-value
ones below them replace everything that touches the transport; they can be awaited from any event
loop, waited for in any thread, and passed as arguments to calls of either transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, TypeVar

import ray
from ray.serve import handle as serve_handle

from serve_grpc._serve.request_routers import replica_behind
from serve_grpc.caller.call import Call
from serve_grpc.errors import ObjectRefNotSupportedError
from serve_grpc.payload import Payload
from serve_grpc.serialization import PICKLES

__all__ = [
    "ByValueResponse",
    "ByValueResponseGenerator",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
]

R = TypeVar("R")


class DeploymentResponse(serve_handle.DeploymentResponse[R]):
    """The result of a unary call; as `ray.serve.handle.DeploymentResponse`."""

    @property
    def replica_id(self) -> str | None:
        """The replica that has the call, or had it last, by its id in `options(replica_id=...)`.

        None before the call was sent, and wherever Serve's own transports carry it: they do not
        tell.
        """
        return replica_behind(self)


class DeploymentResponseGenerator(serve_handle.DeploymentResponseGenerator[R]):
    """The items of a streaming call; as `ray.serve.handle.DeploymentResponseGenerator`.

    It can be closed like a generator of Python's, so `contextlib.aclosing` and `closing` take it.
    """

    @property
    def replica_id(self) -> str | None:
        """As of `DeploymentResponse`."""
        return replica_behind(self)

    def close(self) -> None:
        """Take no more items, and cancel the call if it still runs; from any thread."""
        self.cancel()

    async def aclose(self) -> None:
        """As `close`; nothing is waited for."""
        self.close()


class _ByValue:
    """What responses and generators of calls by value share: their call, and how it is given up."""

    _call: Call
    _is_cancelled = False

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def request_id(self) -> str:
        """Ray Serve's id of the request, for logs."""
        return self._call.fields.request_id

    @property
    def replica_id(self) -> str | None:
        """As of `DeploymentResponse`; None as well while a call that came back waits again."""
        return self._call.replica_id

    @property
    def by_reference(self) -> bool:
        """Always False: the result travels by value."""
        return False

    def cancel(self) -> None:
        """Cancel the call: the handler gets CancelledError, waiting here RequestCancelledError."""
        self._is_cancelled = True
        # Who cancels is told of it; CancelledError, which is for code of a cancelled request or
        # task, would look as if somebody had cancelled that code.
        self._call.is_taken_along = False
        self._call.give_up()

    def cancelled(self) -> bool:
        """Whether `cancel` was called; the call may have ended before it arrived."""
        return self._is_cancelled


class ByValueResponse(_ByValue, DeploymentResponse[R]):
    """A unary call over our transport."""

    def __repr__(self) -> str:
        return f"DeploymentResponse({self._call!r})"

    def __await__(self) -> Generator[Any, None, R]:
        """Wait for the result.

        Raises:
            ServeGrpcError: One of `serve_grpc.errors`.
            RayTaskError: The user's exception, which is also of its own type.
            RequestCancelledError: `cancel` was called.
            asyncio.CancelledError: The request that made the call was cancelled.
        """
        return self._call.__await__()

    async def _wait_for_pickle(self) -> Payload | None:
        """Wait for the call's end; the result if it came as a pickle."""
        call = self._call
        # Not `result`, which would load it: its class may not be known in this process.
        await call.wait_done()
        return call.payload if call.fields.envelope.response_serializer in PICKLES else None

    def result(self, *, timeout_s: float | None = None, _skip_asyncio_check: bool = False) -> R:
        """Wait for the result in this thread.

        Args:
            timeout_s: How long to wait, in seconds; the call itself goes on after that.
            _skip_asyncio_check: Serve's; allows blocking an event loop.

        Raises:
            TimeoutError: `timeout_s` passed.
            RuntimeError: Called in an event loop, which it would block.
        """
        if not _skip_asyncio_check:
            _refuse_in_event_loop("Use `await response` instead.")
        if not self._call.wait_done_blocking(timeout_s):
            raise TimeoutError(f"no result after {timeout_s} s; the call goes on")
        result: R = self._call.result()
        return result

    async def _to_object_ref(self) -> ray.ObjectRef:
        raise ObjectRefNotSupportedError("_to_object_ref", request_id=self.request_id)

    def _to_object_ref_sync(
        self, _timeout_s: float | None = None, _allow_running_in_asyncio_loop: bool = False
    ) -> ray.ObjectRef:
        raise ObjectRefNotSupportedError("_to_object_ref_sync", request_id=self.request_id)


class ByValueResponseGenerator(_ByValue, DeploymentResponseGenerator[R]):
    """A streaming call over our transport. Letting go of it before its end cancels the call."""

    _is_closed = False
    _is_handed_on = False

    def __repr__(self) -> str:
        return f"DeploymentResponseGenerator({self._call!r})"

    def __del__(self) -> None:
        # Runs wherever Python happens to collect garbage, so `give_up` only posts a note; and after
        # an `__init__` that raised, too, when nothing is set yet.
        call = getattr(self, "_call", None)
        if call is not None:
            call.give_up()

    def close(self) -> None:
        """As of `DeploymentResponseGenerator`; the loop over it ends, whatever has arrived."""
        self._is_closed = True
        self._call.give_up()

    def _hand_on(self) -> Call:
        """Give it away as an argument of another call, which takes its items from here on."""
        self._is_closed = self._is_handed_on = True
        return self._call

    def _end(self, end: type[Exception]) -> Exception:
        if not self._is_handed_on:
            return end()
        return RuntimeError("this stream is an argument of another call, which takes its items")

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        """The next item; raises as `DeploymentResponse.__await__` does."""
        if self._is_closed:
            raise self._end(StopAsyncIteration)
        item: R = await self._call.fetch_item()
        return item

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        """The next item, waited for in this thread.

        Raises:
            RuntimeError: Called in an event loop, which it would block.
        """
        _refuse_in_event_loop("Use `async for` or `await response.__anext__()` instead.")
        if self._is_closed:
            raise self._end(StopIteration)
        call = self._call
        if not call.wait_item_blocking():
            call.raise_end()
        item: R = call.take_item()
        return item

    async def _to_object_ref_gen(self) -> ray.ObjectRefGenerator:
        raise ObjectRefNotSupportedError("_to_object_ref_gen", request_id=self.request_id)

    def _to_object_ref_gen_sync(
        self, _timeout_s: float | None = None, _allow_running_in_asyncio_loop: bool = False
    ) -> ray.ObjectRefGenerator:
        raise ObjectRefNotSupportedError("_to_object_ref_gen_sync", request_id=self.request_id)


def _refuse_in_event_loop(instead: str) -> None:
    # Serve's rule and words (`DeploymentResponse.result` in `ray/serve/handle.py`).
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            f"Sync methods should not be called from within an `asyncio` event loop. {instead}"
        )
