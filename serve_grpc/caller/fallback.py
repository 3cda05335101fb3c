"""A call that Serve's own transport carries after all.

Used for calls made before it was known that the deployment has no endpoint of ours, and for those
with a deadline, which Serve's transport does not know. Others are Serve's own from start to end.
The native response is consumed on the transport's loop and fills the call.
"""

from __future__ import annotations

import asyncio

from serve_grpc.caller.call import Call

__all__ = ["NativeCall"]


class NativeCall:
    """Starts the native call at once; on the transport's loop."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """Cancel the native call."""
        self._task.cancel()

    async def _run(self) -> None:
        call = self._call
        assert call.native is not None
        try:
            response = call.native()
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
        except Exception as error:
            call.fail(error)
