"""How the user's generators run: on the event loop, or in a thread.

Each item waits at a gate until its consumer's credit covers it. What an item becomes and where it
goes is the caller's business (`dump`, `send`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from serve_grpc._serve.replicas import UserMethod
from serve_grpc.payload import Payload
from serve_grpc.streams.credit_gates import LoopGate, ThreadGate

__all__ = ["stream_in_this_thread", "stream_on_loop"]

ITEMS_PER_TURN = 16
"""Of one stream whose generator never waits; then other streams, and the writer, have a turn."""

Dump = Callable[[Any], Payload]
Send = Callable[[Payload], None]


async def stream_on_loop(
    method: UserMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    gate: LoopGate,
    dump: Dump,
    send: Send,
) -> None:
    """Run a generator of either kind, or a method that returns one, to its end.

    Raises:
        TypeError: The method returned no generator.
    """
    # An `async def` may return a generator instead of being one (`_call_user_generator` of Serve's
    # `UserCallableWrapper`).
    result = method.function(*args, **kwargs)
    if inspect.iscoroutine(result):
        result = await result
    items = _as_async_generator(result, method)
    try:
        sent = 0
        async for item in items:
            # Serialized before it waits: the size is what the credit is counted in, and the code
            # may change the item later.
            payload = dump(item)
            size = len(payload)
            if not gate.try_enter(size):
                await gate.enter(size)
            send(payload)
            sent += 1
            if sent == 1 or sent % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)  # the first item leaves before the others are made
    except asyncio.CancelledError:
        # The cancel reached this frame, at the gate, and not the user's: by Serve's rules a
        # generator that is cancelled sees CancelledError where it paused.
        await _throw_cancelled(result)
        raise
    finally:
        # Now, not when it is collected: its `finally` blocks may hold a lock or a connection.
        await items.aclose()


def stream_in_this_thread(
    method: UserMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    gate: ThreadGate,
    dump: Dump,
    send: Send,
) -> None:
    """Run a `def` generator to its end, or to its next item once the gate is closed.

    All of it runs in one thread, as Serve does it; the thread sleeps while there is no credit.

    Raises:
        TypeError: The method returned no generator.
    """
    result = method.function(*args, **kwargs)
    if not inspect.isgenerator(result):
        raise _not_a_generator(method)
    try:
        for item in result:
            payload = dump(item)
            # Python cannot interrupt a thread: this is where a cancel ends it.
            if not gate.enter(len(payload)):
                return
            send(payload)
    finally:
        result.close()


def _not_a_generator(method: UserMethod) -> TypeError:
    return TypeError(
        f"Called method '{method.name}' with `handle.options(stream=True)` but it did not return "
        "a generator."
    )


def _as_async_generator(result: Any, method: UserMethod) -> AsyncGenerator[Any, None]:
    if isinstance(result, AsyncGeneratorType):
        return result
    if isinstance(result, GeneratorType):
        return _step(result)
    raise _not_a_generator(method)


async def _step(generator: Generator[Any, None, None]) -> AsyncGenerator[Any, None]:
    try:
        for item in generator:
            yield item
    finally:
        generator.close()


async def _throw_cancelled(result: Any) -> None:
    """Raise CancelledError where an async generator paused while its item waited for credit.

    What it raises instead goes on from here. One that was cancelled inside its own code is already
    over.
    """
    if inspect.isasyncgen(result):
        try:
            await result.athrow(asyncio.CancelledError())
        except (asyncio.CancelledError, StopAsyncIteration):
            return
