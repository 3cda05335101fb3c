"""What a handler gets for a stream among its arguments.

One class for all kinds of code, as Serve's own `DeploymentResponseGenerator` is: `async for` waits
on an event loop, `for` in a thread, which may also be one that `async def` code started. It can be
consumed once, and handed on as an argument of another call, unopened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Generic, NoReturn, TypeVar

from ray.serve.exceptions import RequestCancelledError

from serve_grpc.payload import ON_LOOP_BYTES, Payload
from serve_grpc.streams.inbox import Inbox, Stop
from serve_grpc.threads import in_thread

__all__ = ["RequestStream"]

T = TypeVar("T")

ITEMS_PER_TURN = 16
"""Taken one after the other without a wait; then other tasks, and a cancel, have a turn."""


class RequestStream(Generic[T]):
    """The items of a stream that the caller passed as an argument.

    An async iterator with `aclose()`, and an iterator that blocks its thread, with `close()`.
    Several tasks, or threads, may share the work by `anext(stream)`, or `next(stream)`: each item
    goes to one of them. To give up a wait, with `asyncio.wait_for` say, loses no item.

    Raised where an item is asked for:
        RequestStreamError: The caller's generator failed; its exception is the `cause`.
        SerializationError: The item cannot be read here; those behind it can.
        asyncio.CancelledError: The call was cancelled; in a thread it is `RequestCancelledError`.
        RuntimeError: The handler has ended. Or it is iterated a second time, or by `for` in an
            event loop.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._is_consumed = False
        self._is_handed_on = False
        self._has_failed = False
        self._in_this_turn = 0

    def __repr__(self) -> str:
        return f"<RequestStream {self._inbox!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a stream of the request cannot be pickled. Pass it directly, as an argument of a call "
            "by value, not inside of another value"
        )

    def _hand_on(self) -> Inbox:
        """Give it away, to who passes its items on.

        Raises:
            RuntimeError: It is consumed already.
        """
        self._consume()
        self._is_handed_on = True
        return self._inbox

    def _consume(self) -> None:
        if self._is_consumed:
            raise RuntimeError(
                "a stream of the request is iterated, or passed on, once. `anext(stream)`, in a "
                "thread `next(stream)`, takes its items one by one"
            )
        self._is_consumed = True

    def _nothing_left(self) -> RuntimeError | None:
        # One that failed is over, as a generator is. Who gave it away gets an error, and no end.
        return RuntimeError("this stream was passed on") if self._is_handed_on else None

    # ------------------------------------------------------------ on an event loop

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate it, once.

        Raises:
            RuntimeError: It is consumed already.
        """
        self._consume()
        return _LoopIterator(self)

    async def __anext__(self) -> T:
        """The next item; raises what the class says."""
        if self._is_handed_on or self._has_failed:
            raise self._nothing_left() or StopAsyncIteration
        inbox = self._inbox
        if self._in_this_turn == ITEMS_PER_TURN:
            self._in_this_turn = 0
            await asyncio.sleep(0)
        while (payload := inbox.take()) is None:
            self._in_this_turn = 0
            if not await inbox.wait_item():
                raise await self._end()
        self._in_this_turn += 1
        if len(payload) > ON_LOOP_BYTES:
            return await self._load_in_thread(payload)
        # Credit first: an item that cannot be loaded has been taken all the same.
        inbox.took(len(payload))
        item: T = inbox.serializer.load_item(payload)
        return item

    async def _load_in_thread(self, payload: Payload) -> T:
        inbox = self._inbox
        is_back = False
        try:
            return await in_thread(inbox.serializer.load_item, payload)
        except asyncio.CancelledError:
            inbox.put_back(payload)  # it comes before the others
            is_back = True
            raise
        finally:
            if not is_back:
                inbox.took(len(payload))

    async def _end(self) -> BaseException:
        if self._inbox.stop is Stop.CUT_OFF:
            return asyncio.CancelledError()
        if self._inbox.stop is Stop.OVER:
            return RuntimeError(Stop.OVER.value)
        if self._inbox.stop is Stop.CLOSED or self._inbox.error is None:
            return StopAsyncIteration()
        failure = await in_thread(self._inbox.failure)  # the import of its module may take long
        assert failure is not None
        self._has_failed = True
        return failure

    async def aclose(self) -> None:
        """Take no more items. The caller's generator is closed at its next step."""
        self.close()

    # ------------------------------------------------------------ in a thread

    def __iter__(self) -> Iterator[T]:
        """As `__aiter__`, for a thread."""
        self._consume()
        return _ThreadIterator(self)

    def __next__(self) -> T:
        """As `__anext__`, blocking this thread."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "`for` and `next()` would block the event loop that this code runs on. Use "
                "`async for`, or let the code run in a thread"
            )
        if self._is_handed_on or self._has_failed:
            raise self._nothing_left() or StopIteration
        inbox = self._inbox
        while (payload := inbox.take()) is None:
            if not inbox.wait_item_blocking():
                raise self._end_in_thread()
        inbox.took(len(payload))
        item: T = inbox.serializer.load_item(payload)
        return item

    def _end_in_thread(self) -> BaseException:
        if self._inbox.stop is Stop.CUT_OFF:
            cancelled: BaseException = RequestCancelledError()
            return cancelled
        if self._inbox.stop is Stop.OVER:
            return RuntimeError(Stop.OVER.value)
        if self._inbox.stop is Stop.CLOSED or (failure := self._inbox.failure()) is None:
            return StopIteration()
        self._has_failed = True
        return failure

    def close(self) -> None:
        """As `aclose`, from any thread."""
        self._inbox.close()


class _LoopIterator(Generic[T]):
    """What `async for` asks; an iterator, unlike the stream, may be iterated again: it goes on."""

    def __init__(self, stream: RequestStream[T]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._stream.__anext__()


class _ThreadIterator(Generic[T]):
    """As `_LoopIterator`, for `for`."""

    def __init__(self, stream: RequestStream[T]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._stream.__next__()
