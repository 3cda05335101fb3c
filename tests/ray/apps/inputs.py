"""A deployment whose arguments are streams: it reads them, hands them on, or leaves them alone."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray import serve

from serve_grpc.errors import RequestStreamError

__all__ = ["Reader", "Refusal", "numbers_of"]


class Refusal(Exception):
    """What generators of the tests raise."""


def numbers_of(value: Any) -> Any:
    """A number of an item, whatever a serializer made of it."""
    return int(value) if isinstance(value, bytes) else value


class Reader:
    """Args: `inner`, a handle to another one."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner.options(_by_reference=False) if inner is not None else None
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.notes: dict[str, str] = defaultdict(lambda: "unknown")

    # ------------------------------------------------------------ unary

    async def __call__(self, stream: Any) -> list[Any]:
        return [numbers_of(item) async for item in stream]

    async def first_bytes(self, stream: Any) -> bytes:
        return b",".join([item async for item in stream])

    def in_thread(self, stream: Any) -> list[Any]:
        return list(stream)

    async def all(self, *streams: Any, **named: Any) -> Any:
        """Items of each stream, and each other argument."""
        args = [await self._read(value) for value in streams]
        return [args, {name: await self._read(value) for name, value in named.items()}]

    async def _read(self, value: Any) -> Any:
        return [item async for item in value] if hasattr(value, "__aiter__") else value

    async def kind_of(self, stream: Any) -> str:
        return type(stream).__name__

    async def length(self, stream: Any) -> int:
        return sum([len(item) async for item in stream])

    async def first(self, stream: Any, number: int) -> list[Any]:
        taken: list[Any] = []
        async for item in stream:
            taken.append(item)
            if len(taken) == number:
                break
        return taken

    async def close_and_hold(self, stream: Any, key: str) -> str:
        await stream.aclose()
        self.notes[key] = "closed"
        await self.gates[key].wait()
        return key

    async def values(self, stream: Any) -> list[Any]:
        """Of ObjectRefs, asked for when nobody else may hold them any more."""
        refs = [ref async for (ref,) in stream]
        gc.collect()
        await asyncio.sleep(0.2)
        return [await ref for ref in refs]

    async def pass_on_values(self, stream: Any) -> list[Any]:
        assert self.inner is not None
        result: list[Any] = await self.inner.values.remote(stream)
        return result

    async def caught(self, stream: Any) -> tuple[list[Any], str, str, str]:
        """What came before the error, its class, and its cause."""
        taken: list[Any] = []
        try:
            async for item in stream:
                taken.append(item)
        except RequestStreamError as error:
            cause = error.cause
            return taken, type(error).__name__, type(cause).__name__, str(cause)
        return taken, "", "", ""

    async def fail(self, stream: Any) -> None:
        async for _ in stream:
            raise ValueError("enough")

    # ------------------------------------------------------------ streams

    async def echo(self, stream: Any) -> AsyncIterator[Any]:
        async for item in stream:
            yield item

    def echo_in_thread(self, stream: Any) -> Iterator[Any]:
        yield from stream

    async def pass_on(self, stream: Any) -> AsyncIterator[Any]:
        """The stream goes on as it came."""
        assert self.inner is not None
        method = "pass_on" if await self.inner.has_inner.remote() else "echo"
        async for item in self.inner.options(method_name=method, stream=True).remote(stream):
            yield item

    async def count(self, number: int) -> AsyncIterator[int]:
        for i in range(number):
            yield i

    async def has_inner(self) -> bool:
        return self.inner is not None

    async def wrapped(self, stream: Any) -> AsyncIterator[Any]:
        """The response of the inner one is an argument of another call of it."""
        assert self.inner is not None
        echo = self.inner.options(method_name="echo", stream=True)
        async for item in echo.remote(echo.remote(stream)):
            yield item

    # ------------------------------------------------------------ a caller of others

    async def feeds_inner(self, number: int, key: str) -> list[Any]:
        """A stream of its own is the argument of a call."""

        async def items() -> AsyncIterator[int]:
            try:
                for i in range(number):
                    self.notes[key] = "made"
                    yield i
                self.notes[key] = "end"
            except BaseException as error:
                self.notes[key] = type(error).__name__
                raise

        assert self.inner is not None
        result: list[Any] = await self.inner.remote(items())
        return result

    async def feeds_inner_in_thread(self, number: int, key: str) -> list[Any]:
        def items() -> Iterator[int]:
            try:
                for i in range(number):
                    self.notes[key] = "made"
                    yield i
                self.notes[key] = "end"
            except BaseException as error:
                self.notes[key] = type(error).__name__
                raise

        assert self.inner is not None
        result: list[Any] = await self.inner.remote(items())
        return result

    # ------------------------------------------------------------ calls that last

    async def hold(self, stream: Any, key: str) -> int:
        """Reads nothing until `release(key)`; the number of items."""
        self.notes[key] = "running"
        try:
            await self.gates[key].wait()
            return len([item async for item in stream])
        except asyncio.CancelledError:
            self.notes[key] = "cancelled"
            raise

    async def slowly(self, stream: Any, key: str) -> AsyncIterator[Any]:
        """Each item waits for a `release(key)`."""
        async for item in stream:
            yield item
            await self.gates[key].wait()
            self.gates[key].clear()

    async def release(self, key: str) -> None:
        self.gates[key].set()

    async def note(self, key: str) -> str:
        return self.notes[key]

    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def pid(self) -> int:
        return os.getpid()

    # ------------------------------------------------------------ models

    @serve.multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> str:
        return model_id

    async def model(self, stream: Any) -> tuple[str, list[Any]]:
        return await self.load(serve.get_multiplexed_model_id()), [i async for i in stream]
