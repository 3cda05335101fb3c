"""Where the items of an input come from: the caller's generators, each run where it belongs.

An async generator runs in a task on the loop of `remote()`, a plain one in a thread of its own,
both in the context of `remote()`. Items are serialized there, wait for credit and are handed to the
transport. Invariants: one step at a time, and no close while a step runs; a generator is closed
once, where it runs, in every outcome; nothing is handed over after the end, which is one.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from typing import Any, Protocol

from serve_grpc.caller.item_writer import END, Entry, ItemWriter, Terms
from serve_grpc.foreign import is_interrupt, log_failure
from serve_grpc.mailbox import mailbox_of
from serve_grpc.streams.credit_gates import LoopGate, ThreadGate

__all__ = ["ITEMS_PER_TURN", "LoopSource", "ReferencedItems", "Sink", "Source", "ThreadSource"]

ITEMS_PER_TURN = 16
"""Of one generator that never waits; then whatever else runs on its loop has a turn."""

Sink = Callable[[Sequence[Entry]], None]
"""Takes what is made, items or an end, from any thread, and never in the midst of anything else."""


class Source(Protocol):
    """Makes the items of one input. All methods are called on the transport's loop, or before the
    call gets there.

    Attributes:
        counts_untaken: Whether it wants to hear `taken_over`.
    """

    counts_untaken: bool

    def start(self, sink: Sink, terms: Terms) -> None:
        """Begin. Args: `sink` takes what is made, `terms` are those of the first replica."""

    def grant(self, items: int, bytes_: int) -> None:
        """So much more may be made."""

    def taken_over(self, size: int) -> None:
        """The transport's loop has got an item of so many bytes."""

    def stop(self) -> None:
        """No more is wanted: the generator is closed at its next step, or now if none runs."""

    @property
    def is_lost(self) -> bool:
        """Whether nothing can come any more, for the generator's loop is closed."""


class ReferencedItems:
    """A response generator of Serve's own as a generator. Args: `response`."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def __anext__(self) -> Any:
        return await self._response.__anext__()

    def __next__(self) -> Any:
        return next(self._response)

    async def aclose(self) -> None:
        """As `close`."""
        self._response.cancel()

    def close(self) -> None:
        """Nobody takes its items any more."""
        self._response.cancel()


class LoopSource:
    """An async generator, run by a task on its loop.

    Args:
        steps: The generator.
        writer: Makes entries of what it yields.
        loop: Where `remote()` was called.
    """

    counts_untaken = False  # credit alone limits how much is made on a loop

    def __init__(
        self,
        steps: AsyncGenerator[Any, None] | ReferencedItems,
        writer: ItemWriter,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._steps = steps
        self._writer = writer
        self._loop = loop
        self._mailbox = mailbox_of(loop)
        self._context = contextvars.copy_context()
        self._gate: LoopGate | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<LoopSource of {self._writer.name}>"

    # ------------------------------------------------------------ for the transport

    def start(self, sink: Sink, terms: Terms) -> None:
        """As of `Source`."""
        self._post(self._begin, sink, terms)

    def grant(self, items: int, bytes_: int) -> None:
        """As of `Source`."""
        self._post(self._grant, items, bytes_)

    def taken_over(self, size: int) -> None:
        """As of `Source`."""

    def stop(self) -> None:
        """As of `Source`."""
        self._post(self._stop)

    @property
    def is_lost(self) -> bool:
        """As of `Source`."""
        return self._loop.is_closed()

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        # None of these runs the user's code: what they start has its turn later.
        if asyncio._get_running_loop() is self._loop:
            function(*args)
            return
        try:
            self._mailbox.post(function, *args)
        except RuntimeError:
            return  # the loop is closed, and its generator can take no step; `is_lost` says so

    # ------------------------------------------------------------ on the generator's loop

    def _begin(self, sink: Sink, terms: Terms) -> None:
        if not self._is_stopped:
            self._gate = LoopGate(terms.items, terms.bytes_)
            self._create_task(self._run(sink, terms, self._gate))

    def _grant(self, items: int, bytes_: int) -> None:
        if self._gate is not None:
            self._gate.grant(items, bytes_)

    def _stop(self) -> None:
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._gate is not None:
            self._gate.close()  # if a step runs instead, the task looks when it is over
        else:
            self._create_task(self._close())

    def _create_task(self, work: Coroutine[Any, Any, None]) -> None:
        for source in tuple(_running):  # a copy, for other threads have loops as well
            if source.is_lost:
                _running.discard(source)
        # A loop holds its tasks weakly, and the call may be over before the generator's next step.
        _running.add(self)
        # By `run`, for before CPython 3.11 a task takes no context.
        self._task = self._context.run(self._loop.create_task, work)
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        _running.discard(self)
        self._task = None
        if not task.cancelled():
            task.exception()  # looked at: the input has told of it

    async def _run(self, sink: Sink, terms: Terms, gate: LoopGate) -> None:
        interrupt: BaseException | None = None
        try:
            await self._produce(sink, terms, gate)
        except GeneratorExit as error:
            # The loop was closed under the task, which may not wait for anything any more.
            sink((self._writer.failed(error, terms),))
            raise
        except BaseException as error:
            # SystemExit, too: raised in a task, it would end the loop, and it is this call's alone.
            if isinstance(error, asyncio.CancelledError) or is_interrupt(error):
                interrupt = error
            sink((self._writer.failed(error, terms),))
        await self._close()
        if interrupt is not None:
            raise interrupt

    async def _produce(self, sink: Sink, terms: Terms, gate: LoopGate) -> None:
        made = 0
        while not self._is_stopped:
            try:
                value = await self._steps.__anext__()
            except StopAsyncIteration:
                sink((END,))
                return
            if self._is_stopped:
                return
            # Serialized before it waits: its size is what credit is counted in, and the code may
            # change it later.
            entry = self._writer.item(value, terms)
            size = len(entry.payload)
            if not gate.try_enter(size) and not await gate.enter(size):
                return
            sink((entry,))
            made += 1
            if made % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _close(self) -> None:
        try:
            await self._steps.aclose()
        except BaseException as error:
            if isinstance(error, (asyncio.CancelledError, GeneratorExit)) or is_interrupt(error):
                raise
            # Nobody is left to be told: the input has ended, or its call has.
            log_failure("close the generator of an input")


_running: set[LoopSource] = set()


class ThreadSource:
    """A plain generator, run in a thread of its own.

    Args:
        steps: The generator.
        writer: Makes entries of what it yields.
    """

    is_lost = False
    counts_untaken = True

    def __init__(
        self, steps: Generator[Any, None, None] | ReferencedItems, writer: ItemWriter
    ) -> None:
        self._steps = steps
        self._writer = writer
        self._context = contextvars.copy_context()
        self._gate: ThreadGate | None = None
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<ThreadSource of {self._writer.name}>"

    # ------------------------------------------------------------ for the transport

    def start(self, sink: Sink, terms: Terms) -> None:
        """As of `Source`."""
        if self._is_stopped:
            return
        self._gate = ThreadGate(terms.items, terms.bytes_)
        try:
            self._run_in_thread(self._run, sink, terms, self._gate)
        except RuntimeError as error:  # the system has no thread left
            self._is_stopped = True
            sink((self._writer.failed(error, terms),))

    def grant(self, items: int, bytes_: int) -> None:
        """As of `Source`."""
        if self._gate is not None:
            self._gate.grant(items, bytes_)

    def taken_over(self, size: int) -> None:
        """As of `Source`."""
        if self._gate is not None:
            self._gate.taken_over(size)

    def stop(self) -> None:
        """As of `Source`."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._gate is not None:
            self._gate.close()
        elif inspect.isgenerator(self._steps) and (
            inspect.getgeneratorstate(self._steps) == inspect.GEN_CREATED
        ):
            self._steps.close()  # none of its code has run, and none will
        else:
            try:
                self._run_in_thread(self._close)
            except RuntimeError:  # as above; its code must not run here
                log_failure("close the generator of an input")

    def _run_in_thread(self, work: Callable[..., None], *args: Any) -> None:
        name = f"serve_grpc-input-{self._writer.name}"
        threading.Thread(
            target=self._context.run, args=(work, *args), name=name, daemon=True
        ).start()

    # ------------------------------------------------------------ in its thread

    def _run(self, sink: Sink, terms: Terms, gate: ThreadGate) -> None:
        try:
            self._produce(sink, terms, gate)
        except BaseException as error:  # as in `LoopSource`
            sink((self._writer.failed(error, terms),))
        self._close()

    def _produce(self, sink: Sink, terms: Terms, gate: ThreadGate) -> None:
        while not self._is_stopped:
            try:
                value = next(self._steps)
            except StopIteration:
                sink((END,))
                return
            if self._is_stopped:
                return
            entry = self._writer.item(value, terms)
            # Python cannot interrupt a thread: this is where a cancel ends it.
            if not gate.enter(len(entry.payload)):
                return
            sink((entry,))

    def _close(self) -> None:
        try:
            self._steps.close()
        except BaseException:
            log_failure("close the generator of an input")
