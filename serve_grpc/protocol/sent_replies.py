"""Replies as they go out: whole, in fragments, or behind a large one of the same call.

Invariants: the frames of one call leave in the order they were given, so a small one waits for a
large one before it; and refs that a reply names are held from when the frame that names them is
queued, because only then is it sure to leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_grpc._generated.replica_pb2 import Error, ReplicaBatch, Reply, StoredPayload
from serve_grpc.payload import Payload, Segments, joined, refs_of
from serve_grpc.protocol import wire
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.status import shortened

__all__ = ["SentReplies"]


class SentReplies:
    """The replies of one session that need more than a frame, on the replica's side.

    Args:
        outbox: Where their frames go.
        max_message_bytes: Largest error that is sent whole.

    Attributes:
        lent: Refs that replies named, by number, until the caller has fetched them.
        caller_borrows: Whether the caller fetches the refs that `Reply.lent` names.
    """

    def __init__(self, outbox: Outbox[ReplicaBatch], max_message_bytes: int) -> None:
        self._outbox = outbox
        self._max_message_bytes = max_message_bytes
        self._last_lent = 0
        self.lent: dict[int, Sequence[Any]] = {}
        self.caller_borrows = False

    def add(self, call_id: int, kind: Reply.Kind, payload: Payload) -> None:
        """Queue a result, an item or the end of a stream, of any size, which may name refs."""
        # The frame, and with it the loan, is made when the fragments are out: of a call that is
        # given up before, `drop_large` forgets both.
        outbox, refs = self._outbox, refs_of(payload)
        if type(payload) is Segments and payload.stored is not None:
            # Of a unary call: nothing of the same call is before it.
            self._queue(call_id, kind, b"", refs, StoredPayload(**payload.stored._asdict()))
        elif len(payload) > wire.INLINE_BYTES:
            outbox.send_large(call_id, payload, lambda: self._queue(call_id, kind, b"", refs))
        elif outbox.has_large(call_id):
            small = joined(payload)
            outbox.send_after_large(call_id, lambda: self._queue(call_id, kind, small, refs))
        else:
            self._queue(call_id, kind, joined(payload), refs)

    def _queue(
        self,
        call_id: int,
        kind: Reply.Kind,
        payload: bytes,
        refs: Sequence[Any],
        stored: StoredPayload | None = None,
    ) -> None:
        lent = self._lend(refs)
        self._outbox.batch.replies.add(
            id=call_id, kind=kind, payload=payload, lent=lent, stored=stored
        )
        self._outbox.added(len(payload))

    def add_error(self, call_id: int, error: Error, refs: Sequence[Any]) -> None:
        """Queue the failure of a call, which names `refs`."""
        outbox, size = self._outbox, error.ByteSize()
        if size > self._max_message_bytes:
            # The user's exception may hold anything. Its text is what the caller can use at least;
            # the exception itself, and with it whatever it names, stays here.
            error, refs = shortened(error), ()
            size = error.ByteSize()
        if size > wire.INLINE_BYTES:
            data: bytes = error.SerializeToString()
            outbox.send_large(call_id, data, lambda: self._queue(call_id, Reply.ERROR, b"", refs))
        elif outbox.has_large(call_id):
            outbox.send_after_large(call_id, lambda: self._queue_error(call_id, error, size, refs))
        else:
            self._queue_error(call_id, error, size, refs)

    def _queue_error(self, call_id: int, error: Error, size: int, refs: Sequence[Any]) -> None:
        lent = self._lend(refs)
        self._outbox.batch.replies.add(id=call_id, kind=Reply.ERROR, error=error, lent=lent)
        self._outbox.added(size)

    def _lend(self, refs: Sequence[Any]) -> int:
        """Hold refs for the caller; returns the number by which it fetches them, 0 for none.

        A caller that does not know how to fetch them is not told; they are held all the same.
        """
        if not refs:
            return 0
        self._last_lent += 1
        self.lent[self._last_lent] = refs
        # An older caller cannot say when it lets go, so `lending.Desk` holds them until the process
        # ends, as Ray does with what is pickled out of band.
        return self._last_lent if self.caller_borrows else 0
