"""A call that Serve's own router places.

Used where the deployment has a request router of its own, and where calls go over Serve's own
transport. The native response is consumed in a task on the transport's loop and fills the call: so
deadlines hold, which that transport does not know, an error of gRPC becomes one of ours, and a
CancelledError that nobody here caused is told from one that somebody did. Of a stream no more is
taken than the call's consumer gave credit for. What our sessions carry is passed on as it came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._serve.exceptions import RemoteException
from serve_grpc._serve.request_routers import PlacedCall, placed_behind
from serve_grpc.caller.call import Call
from serve_grpc.errors import ReplicaDiedError, SerializationError, ServeGrpcError
from serve_grpc.foreign import is_interrupt, name_of, text_of
from serve_grpc.protocol.flow import ProducerWindow
from serve_grpc.routing.retry import RetryBudget
from serve_grpc.transport.foreign import as_documented

__all__ = ["NativeCall"]


class NativeCall:
    """Starts the native call at once; on the transport's loop.

    Args:
        call: What it fills.
        budget: Of repeated calls.
        on_end: Called with the call when nothing of it goes on any more.
    """

    def __init__(self, call: Call, budget: RetryBudget, *, on_end: Callable[[Call], None]) -> None:
        self._call = call
        self._budget = budget
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(lambda _: on_end(call))
        self._placed: PlacedCall | None = None
        self._is_serves = False  # Serve's own transport carries it
        self._window = ProducerWindow(call.fields.credit_items, 1)  # values are of unknown size
        self._granted = asyncio.Event()

    def cancel(self) -> None:
        """Cancel the native call."""
        self._task.cancel()

    def grant(self, items: int, bytes_: int) -> None:
        """The consumer took this much of a stream."""
        if self._placed is not None:
            self._placed.grant(items, bytes_)
        else:
            self._window.grant(items, 0)
            self._granted.set()

    async def _run(self) -> None:
        call = self._call
        native = call.native
        assert native is not None
        while True:
            try:
                await self._consume(native())
                return
            except asyncio.CancelledError:
                # Whoever gives the call up has ended it by now. Else the handler raised this.
                call.fail(RequestCancelledError(call.fields.request_id))
                raise
            except BaseException as error:
                if is_interrupt(error):
                    raise
                if not self._may_repeat(error):
                    self._fail(error)
                    return

    def _fail(self, error: BaseException) -> None:
        fields = self._call.fields
        ours = as_documented(error)
        if not isinstance(error, Exception):  # Serve loads what arrives in this very task
            ours = SerializationError(
                f"loading the response raised {name_of(error)}: {text_of(error)}",
                serializer=fields.envelope.response_serializer,
                direction="response",
                may_have_executed=True,
            )
        if self._is_serves and isinstance(error, ServeGrpcError):
            error.may_have_executed = True  # it is the handler's, whatever befell a call of its own
        if ours is not None:
            ours.request_id = fields.request_id
            ours.__cause__ = error
        self._call.fail(ours or error)

    async def _consume(self, response: Any) -> None:
        call = self._call
        try:
            self._placed = await placed_behind(response)
            self._is_serves = self._placed is None
            if self._placed is not None:
                await self._pass_on(self._placed.call)
            elif call.fields.envelope.stream:
                call.has_value = True
                await self._fill(response)
            else:
                call.succeed_with(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def _pass_on(self, placed: Call) -> None:
        call = self._call
        while await placed.wait_item():
            call.add_item(placed.pass_item())
        if isinstance(placed.error, RemoteException):
            call.fail(placed.error)
        elif placed.error is not None:
            raise placed.exception()
        else:
            assert placed.payload is not None
            call.succeed(placed.payload)

    async def _fill(self, response: Any) -> None:
        async for item in response:
            self._call.add_item(item)
            self._window.spend(0)
            while not self._window.is_open:
                self._granted.clear()
                await self._granted.wait()
        self._call.succeed_with(None)

    def _may_repeat(self, error: BaseException) -> bool:
        # What Serve's own transport may repeat, Serve's router has repeated. From there, and as a
        # RayTaskError, this is the answer of a handler, whose own call was lost.
        call = self._call
        if self._is_serves or isinstance(error, RayTaskError):
            return False
        if not isinstance(error, ReplicaDiedError):
            return False
        if call.has_items or (error.may_have_executed and not call.is_idempotent):
            return False
        if not self._budget.try_spend(time.monotonic()):
            return False
        call.may_have_executed |= error.may_have_executed
        return True
