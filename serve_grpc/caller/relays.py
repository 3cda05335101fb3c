"""Streams that are handed on: the items of another call, or of the caller's own input, as an input.

Our own code on the transport's loop: no generator of the user's runs. Items go on unopened where
serializers agree, else they are loaded and written anew in a thread. An item counts as consumed
only when it may be sent, so a slow last consumer pauses the first producer, however long the chain.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.call import Call
from serve_grpc.caller.item_writer import END, Entry, ItemError, ItemWriter, Terms
from serve_grpc.caller.lending import Borrowed
from serve_grpc.caller.outcomes import UserException, Value
from serve_grpc.caller.sources import ITEMS_PER_TURN, Sink
from serve_grpc.errors import ServeGrpcError
from serve_grpc.foreign import is_interrupt
from serve_grpc.payload import (
    LARGE_BYTES,
    Memory,
    Payload,
    Segments,
    passed_on,
    pieces,
    refs_of,
    with_refs,
)
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.serialization import PICKLES, Serializer, get_serializer
from serve_grpc.shared_memory.blocks import HEAP
from serve_grpc.streams.credit_gates import LoopGate
from serve_grpc.streams.inbox import Inbox
from serve_grpc.threads import in_thread

__all__ = ["InboxItems", "Relay", "ResponseItems", "Upstream"]

MARK_OF_REFS = re.compile(rb"ray\._private\.serialization")
"""In the pickle of each ObjectRef and actor handle: the module of what makes one again."""


class Upstream(Protocol):
    """Where the items come from. Every method but `close` is called on the transport's loop."""

    @property
    def serializer(self) -> Serializer:
        """Wrote the items."""

    async def wait_item(self) -> bool:
        """Return True when there is one, False at the end."""

    @property
    def has_item(self) -> bool:
        """Whether there is one now."""

    def take(self) -> Any:
        """The next one as it came, a payload or a `Value`; None if there is none."""

    def took(self, item: Any) -> None:
        """It goes on: grant credit for it."""

    def is_opaque(self, payload: Payload) -> bool:
        """Whether all that matters of an item is known without loading it."""

    async def failure(self, writer: ItemWriter, terms: Terms) -> Entry | None:
        """How it ended; None as it should."""

    def close(self) -> None:
        """No more is wanted; from any thread."""


class ResponseItems:
    """Those of a response generator by value.

    Args:
        call: Of the response.
        close: Gives the call up; keeps the response, for one that is let go of does so itself.
    """

    def __init__(self, call: Call, close: Callable[[], None]) -> None:
        self._call = call
        self.close = close

    @property
    def serializer(self) -> Serializer:
        """As of `Upstream`."""
        return get_serializer(self._call.fields.envelope.response_serializer)

    async def wait_item(self) -> bool:
        """As of `Upstream`."""
        return await self._call.wait_item()

    @property
    def has_item(self) -> bool:
        """As of `Upstream`."""
        return self._call.has_item

    def take(self) -> Any:
        """As of `Upstream`."""
        return self._call.pass_item() if self._call.has_item else None

    def took(self, item: Any) -> None:
        """As of `Upstream`."""
        self._call.took(item)

    def is_opaque(self, payload: Payload) -> bool:
        """Its refs came with it."""
        return True

    async def failure(self, writer: ItemWriter, terms: Terms) -> Entry | None:
        """As of `Upstream`."""
        call = self._call
        outcome = call.outcome
        assert outcome is not None
        if outcome.is_ok:
            return None
        if type(outcome) is UserException:
            return await _passed_error(*outcome.remote.as_told(), terms)
        # In a thread: what Serve gave as an exception is the user's, too.
        error = await in_thread(call.exception)
        assert error is not None
        return await in_thread(writer.failed, error, terms)


class InboxItems:
    """Those of an input of the request that this code runs for. Args: `inbox`, its end here."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.wait_item = inbox.wait_item
        self.take = inbox.take
        self.close = inbox.close

    @property
    def serializer(self) -> Serializer:
        """As of `Upstream`."""
        return self._inbox.serializer

    @property
    def has_item(self) -> bool:
        """As of `Upstream`."""
        return self._inbox.has_item

    def took(self, item: Any) -> None:
        """As of `Upstream`."""
        self._inbox.took(len(item))

    def is_opaque(self, payload: Payload) -> bool:
        """Not a pickle that may name ObjectRefs, which are known only to who loads it."""
        if self.serializer.name not in PICKLES:
            return True
        return not any(MARK_OF_REFS.search(part) for part in pieces(payload))

    async def failure(self, writer: ItemWriter, terms: Terms) -> Entry | None:
        """As of `Upstream`."""
        error = self._inbox.error
        return None if error is None else await _passed_error(error, (), terms)


async def _passed_error(error: Error, refs: Sequence[Any], terms: Terms) -> Entry:
    """The end of an input that failed with an error as it came."""
    if error.pickled and not terms.may_pickle:
        told = Error()
        told.CopyFrom(error)
        told.pickled, error = b"", told
    await _fetched(refs)
    return Entry(InputKind.ERROR, with_refs(b"", refs) if refs else b"", error)


async def _fetched(refs: Sequence[Any]) -> None:
    # They are lent on; until they are here, nobody could hold them for the next receiver.
    if isinstance(refs, Borrowed):
        await asyncio.wrap_future(refs.fetched)


class Relay:
    """Hands a stream on; as of `sources.Source`.

    Args:
        upstream: Where the items come from.
        writer: Makes entries of those that must be opened.
    """

    is_lost = False
    counts_untaken = False

    def __init__(self, upstream: Upstream, writer: ItemWriter) -> None:
        self._upstream = upstream
        self._writer = writer
        self._gate: LoopGate | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<Relay of {self._writer.name}>"

    def start(self, sink: Sink, terms: Terms) -> None:
        """As of `Source`."""
        if not self._is_stopped:
            self._gate = LoopGate(terms.items, terms.bytes_)
            work = self._run(sink, terms, self._gate)
            self._task = asyncio.get_running_loop().create_task(work)

    def grant(self, items: int, bytes_: int) -> None:
        """As of `Source`."""
        if self._gate is not None:
            self._gate.grant(items, bytes_)

    def taken_over(self, size: int) -> None:
        """As of `Source`."""

    def stop(self) -> None:
        """As of `Source`."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()  # it closes what it reads
        else:
            self._upstream.close()

    async def _run(self, sink: Sink, terms: Terms, gate: LoopGate) -> None:
        try:
            await self._pass_on(sink, terms, gate)
        except asyncio.CancelledError:
            raise  # the call is over, or its loop
        except BaseException as error:  # an item could not be opened, or not be written again
            if is_interrupt(error):
                raise
            sink((await in_thread(self._writer.failed, error, terms),))
        finally:
            self._upstream.close()
            self._task = None

    async def _pass_on(self, sink: Sink, terms: Terms, gate: LoopGate) -> None:
        upstream = self._upstream
        while await upstream.wait_item():
            item = self._pass_run(sink, terms, gate)
            if item is not None:
                entry = self._unopened(item, terms) or await self._opened(item, terms)
                await gate.enter(len(entry.payload))
                # Only now: what was read, and may not go on yet, must not make room for more.
                upstream.took(item)
                sink((entry,))
            elif upstream.has_item:
                await asyncio.sleep(0)
        sink((await upstream.failure(self._writer, terms) or END,))

    def _pass_run(self, sink: Sink, terms: Terms, gate: LoopGate) -> Any:
        """Hand on, together, the items that are here and can go on as they came and at once.

        Returns:
            The first one that cannot; None if there is none, or it is somebody else's turn.
        """
        upstream, run = self._upstream, list[Entry]()
        try:
            while len(run) < ITEMS_PER_TURN and (item := upstream.take()) is not None:
                entry = self._unopened(item, terms)
                if entry is None or not gate.try_enter(len(entry.payload)):
                    return item
                upstream.took(item)
                run.append(entry)
            return None
        finally:
            if run:
                sink(run)

    def _unopened(self, item: Any, terms: Terms) -> Entry | None:
        """The item as it came, if it can go on so and without a wait, as most can."""
        if type(item) is bytes and self._is_alike and self._upstream.is_opaque(item):
            return self._writer.checked(item, terms)
        return None

    @functools.cached_property
    def _is_alike(self) -> bool:
        wrote, reads = self._upstream.serializer.name, self._writer.serializer.name
        return wrote == reads or (wrote in PICKLES and reads in PICKLES)

    async def _opened(self, item: Any, terms: Terms) -> Entry:
        writer = self._writer
        if type(item) is Value:
            return await in_thread(writer.item, item.value, terms)
        if self._is_alike and self._upstream.is_opaque(item):
            await _fetched(refs_of(item))
            return writer.checked(_unopened(item, writer.memory), terms)
        return await in_thread(self._rewritten, item, terms)

    def _rewritten(self, payload: Payload, terms: Terms) -> Entry:
        try:
            value = self._upstream.serializer.load_item(payload)
        except ServeGrpcError as error:
            raise ItemError(error) from error
        return self._writer.item(value, terms)


def _unopened(payload: Payload, memory: Memory | None) -> Payload:
    """The same bytes, to be sent on from where they lie."""
    if type(payload) is not Segments:
        return payload
    parts = [_piece(part, memory) for part in payload.parts]
    return Segments(parts, payload.refs)


def _piece(part: bytes | memoryview, memory: Memory | None) -> bytes | memoryview:
    if isinstance(part, bytes) or part.readonly:
        return part
    own = memoryview(passed_on(part))
    # Not on the heap, which would copy it; the peer of a link without shared memory gets its bytes.
    if memory is None or memory is HEAP or len(own) < LARGE_BYTES:
        return own
    return memory.keep(own) or own
