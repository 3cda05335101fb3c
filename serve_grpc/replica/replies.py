"""Where the outputs of a request go: back on its session, or to a call through the plain door.

Called on the replica's main loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.carriers.replica_pump import MAX_QUEUED_REPLY_BYTES, ReplicaPump
from serve_grpc.payload import Payload, is_stored, joined, refs_of
from serve_grpc.replica.invocation import Invocation
from serve_grpc.shared_memory.blocks import HEAP
from serve_grpc.shared_memory.process import process_memory

__all__ = ["PlainReplies", "SessionReplies"]

# Looking them up on the generated class takes longer than a comparison.
_RESULT, _ITEM, _END = Reply.RESULT, Reply.ITEM, Reply.END


class SessionReplies:
    """Sends outputs back on a session that is open. `running` holds the session's invocations.

    Its streams are held, whatever credit their caller granted, while the caller leaves its replies
    unread: `hold` is told which, and whether to hold them or let them go on.
    """

    def __init__(self, stream: ReplicaPump, hold: Callable[[list[Invocation], bool], None]) -> None:
        self.stream = stream
        self.stores_above = stream.session.stores_above  # it is open, and says so once
        self._hold = hold
        self._waiting_for_room: asyncio.Task[None] | None = None
        self.running: dict[int, Invocation] = {}
        shared = process_memory().pieces if stream.session.outbox.memory is not None else None
        # None for a caller that reads plain pickles only.
        self.memory = shared or (HEAP if stream.session.caller_reads_buffers else None)

    @property
    def is_full(self) -> bool:
        """Whether streams are held."""
        return self._waiting_for_room is not None

    def item(self, invocation: Invocation, payload: Payload) -> None:
        session = self.stream.session
        session.reply(invocation.call_id, _ITEM, payload)
        self.stream.counters.frames_sent += 1
        self.stream.kick_item()
        # Credit bounds each stream, but not how many there are, nor what a caller grants. Results
        # are not held: each belongs to a request, and no more of those are read meanwhile.
        if session.outbox.is_clogged(MAX_QUEUED_REPLY_BYTES) and not self.is_full:
            self._hold(self._streams(), True)
            self._waiting_for_room = asyncio.get_running_loop().create_task(self._go_on())

    def grant_input(
        self, call_id: int, number: int, items: int, bytes_: int, is_closed: bool
    ) -> None:
        """Let the caller send more of an input, or no more."""
        self.stream.session.grant_input(call_id, number, items, bytes_, is_closed=is_closed)
        self.stream.kick()

    async def _go_on(self) -> None:
        await self.stream.wait_room()
        self._waiting_for_room = None
        self._hold(self._streams(), False)

    def _streams(self) -> list[Invocation]:
        return [invocation for invocation in self.running.values() if invocation.is_stream]

    def close(self) -> None:
        """Wait for no room any more: the session is over, and its streams are cancelled."""
        if self._waiting_for_room is not None:
            self._waiting_for_room.cancel()

    def finish(self, invocation: Invocation, payload: Payload, error: Error | None) -> None:
        self.running.pop(invocation.call_id, None)
        session = self.stream.session
        if error is not None:
            session.fail(invocation.call_id, error, refs_of(payload))
        else:
            kind = _END if invocation.is_stream else _RESULT
            session.reply(invocation.call_id, kind, payload)
        counters = self.stream.counters
        counters.frames_sent += 1
        if type(payload) is not bytes and is_stored(payload):
            counters.stored_sent += 1
        self.stream.kick()


class PlainReplies:
    """Hands outputs to a call through the plain door. `running` is set while it runs."""

    stores_above = None  # its clients may be anything

    def __init__(self, call: PlainCall) -> None:
        self._call = call
        self.running: Invocation | None = None

    def item(self, invocation: Invocation, payload: Payload) -> None:
        if refs_of(payload):
            # A session's caller says when it lets go of them; nobody would here.
            self._call.end(_cannot_lend(invocation))
        else:
            self._call.put(joined(payload))

    def finish(self, invocation: Invocation, payload: Payload, error: Error | None) -> None:
        self.running = None
        if error is not None:
            if refs_of(payload):
                error.ClearField("pickled")  # it travels as text
            self._call.end(error)
        elif invocation.is_stream:
            self._call.end()
        else:
            self.item(invocation, payload)


def _cannot_lend(invocation: Invocation) -> Error:
    return Error(
        code=Error.SERIALIZATION,
        message="the result holds an ObjectRef or the handle of an actor. Nobody would tell when a "
        "client of the plain door no longer needs it: call through a handle, or return the value",
        serializer=invocation.response_serializer,
        direction="response",
        may_have_executed=True,
    )
