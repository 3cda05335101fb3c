"""A call that Serve's own router places.

Used where the deployment has a request router of its own, and where calls go over Serve's own
transport. The native response is consumed in a task on the transport's loop and fills the call: so
deadlines hold, which that transport does not know, an error of gRPC becomes one of ours, and a
CancelledError that nobody here caused is told from one that somebody did.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.caller.call import Call
from serve_grpc.errors import ReplicaDiedError, SerializationError
from serve_grpc.routing.retry import RetryBudget
from serve_grpc.transport.foreign import as_documented
from serve_grpc.user_code import is_interrupt, text_of

__all__ = ["NativeCall"]


class NativeCall:
    """Starts the native call at once; on the transport's loop."""

    def __init__(self, call: Call, budget: RetryBudget) -> None:
        self._call = call
        self._budget = budget
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """Cancel the native call."""
        self._task.cancel()

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
                f"loading the response raised {type(error).__name__}: {text_of(error)}",
                serializer=fields.envelope.response_serializer,
                direction="response",
                may_have_executed=True,
            )
        if ours is not None:
            ours.request_id = fields.request_id
            ours.__cause__ = error
        self._call.fail(ours or error)

    async def _consume(self, response: Any) -> None:
        call = self._call
        try:
            if call.fields.envelope.stream:
                call.has_value = True
                async for item in response:
                    call.add_item(item)
                call.succeed_with(None)
            else:
                call.succeed_with(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    def _may_repeat(self, error: BaseException) -> bool:
        # Only our transport raises this; what Serve's own may repeat, Serve's router has repeated.
        # As a RayTaskError it is the answer of a handler, whose own call was lost.
        call = self._call
        if not isinstance(error, ReplicaDiedError) or isinstance(error, RayTaskError):
            return False
        if call.has_items or (error.may_have_executed and not call.is_idempotent):
            return False
        if not self._budget.try_spend(time.monotonic()):
            return False
        call.may_have_executed |= error.may_have_executed
        return True
