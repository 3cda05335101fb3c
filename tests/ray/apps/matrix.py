"""A caller and an echo, run under each combination of Serve's threading flags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["Caller", "Echo"]


class Echo:
    """Gives back what it gets."""

    async def __call__(self, value: Any) -> Any:
        return value

    def in_thread(self, value: Any) -> Any:
        return value

    async def five(self, value: Any) -> AsyncIterator[Any]:
        for _ in range(5):
            yield value

    async def fail(self) -> None:
        raise KeyError("missing")

    async def forever(self) -> None:
        await asyncio.Event().wait()


class Caller:
    """Args: `echo`, a handle."""

    def __init__(self, echo: Any) -> None:
        self.echo = echo.options(_by_reference=False)

    async def flags(self) -> list[bool]:
        from ray.serve._private import constants

        return [
            constants.RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP,
            constants.RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD,
        ]

    def _with(self, serializer: str) -> Any:
        return self.echo.options(
            request_serialization=serializer, response_serialization=serializer
        )

    async def unary(self, serializer: str, value: Any) -> list[Any]:
        handle = self._with(serializer)
        calls = [(handle.in_thread if i % 2 else handle).remote(value) for i in range(20)]
        assert not any(call.by_reference for call in calls)
        return list(await asyncio.gather(*calls))

    async def stream(self, serializer: str, value: Any) -> list[Any]:
        stream = self._with(serializer).options(method_name="five", stream=True).remote(value)
        return [item async for item in stream]

    async def errors(self) -> list[Any]:
        try:
            await self.echo.fail.remote()
        except KeyError as error:
            name = type(error.cause).__name__
        try:
            await asyncio.wait_for(self.echo.forever.remote(), 0.1)
        except asyncio.TimeoutError:
            return [name, True]
        return [name, False]

    async def in_thread(self, value: Any) -> Any:
        # `.result()` in a thread of the replica, on a handle that a loop uses too.
        response = self.echo.remote(value)
        return await asyncio.to_thread(response.result, timeout_s=20)
