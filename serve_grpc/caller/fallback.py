"""A call that Serve's own router places.

Used where the deployment has a request router of its own; and where calls go over Serve's own
transport, for those made before that was known and those with a deadline, which that transport does
not know. The native response is consumed on the transport's loop and fills the call.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from serve_grpc.caller.call import Call
from serve_grpc.errors import ReplicaDiedError
from serve_grpc.routing.retry import RetryBudget

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
            except Exception as error:
                if not self._may_repeat(error):
                    call.fail(error)
                    return

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

    def _may_repeat(self, error: Exception) -> bool:
        # Only our transport raises this; what Serve's own may repeat, Serve's router has repeated.
        if not isinstance(error, ReplicaDiedError) or self._call.has_items:
            return False
        may_run_again = self._call.is_idempotent or not error.may_have_executed
        return may_run_again and self._budget.try_spend(time.monotonic())
