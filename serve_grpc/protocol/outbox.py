"""Frames on their way out, already batched.

Small frames share messages in the order they were added. Large payloads leave as fragments, a few
side by side, so that small frames never wait for them. Invariant: a fragment leaves after every
earlier frame of its id, and before the frame that owns it; in a message, fragments come first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic

from serve_grpc.payload import Payload, pieces
from serve_grpc.protocol import wire
from serve_grpc.protocol.places import LinkMemory, Place
from serve_grpc.protocol.wire import BatchT
from serve_grpc.shared_memory.blocks import BLOCK_BYTES

__all__ = ["Outbox"]

LARGEST_WAITING = 4
"""Payloads of the largest size that may wait without clogging an outbox; of the default limit's
4 MiB they are the 16 MiB that a session's owners allow."""


class _Bulk:
    """One large payload on its way out, and the frames of the same id that wait behind it."""

    def __init__(self, payload: Payload, after_batch: int) -> None:
        self.after_batch = after_batch
        """The last message with an earlier frame of this id; fragments come after it."""
        self.then: deque[tuple[Callable[[], None], Payload | None]] = deque()
        self.load(payload)

    def load(self, payload: Payload) -> None:
        """Send `payload` from now on."""
        # Views, so that cutting copies nothing; the bytes are copied once, into their message.
        self._views = deque(memoryview(piece) for piece in pieces(payload))
        self._is_within = False  # the first of them has left in part
        self.left = self.size = len(payload)

    def cut(self, budget: int) -> tuple[memoryview, int]:
        """Take at most `budget` bytes off the front.

        Returns:
            Them, and the size of the piece if it is a large one that begins with them.
        """
        view = self._views.popleft()
        begun = len(view) if len(view) >= BLOCK_BYTES and not self._is_within else 0
        self._is_within = len(view) > budget
        if self._is_within:
            self._views.appendleft(view[budget:])
            view = view[:budget]
        self.left -= len(view)
        return view, begun

    def lend(self, memory: LinkMemory) -> Place | None:
        """Take the next piece off the front if the peer can read it where it is."""
        place = memory.lend(self._views[0])
        if place is not None:
            self._views.popleft()
            self.left -= place.size
        return place


class Outbox(Generic[BatchT]):
    """Frames waiting to be written, already batched.

    Small frames go into `batch`, which the owner fills and reports with `added`. A large payload
    goes to `send_large` and leaves as fragments, taking turns with other large payloads; the
    frame that owns it is queued when its last fragment leaves. `take` gives the next message.

    Attributes:
        batch: The open batch.
        queued_bytes: About how many bytes wait here; 0 only if nothing does.
        pending_batch: Number of the message that will carry a frame added now, counting from 1.
        batches_taken: How many messages `take` gave out; a frame added while this was `n` and
            `pending_batch` was `k` is certainly unsent while `batches_taken < k`.
        memory: What the link shares beside messages; None if nothing, or not yet.
    """

    def __init__(self, kind: type[BatchT]) -> None:
        self._kind: type[BatchT] = kind
        # Lists, though they are taken from in front: they are short, and an empty deque takes
        # 0.6 KB, in each of thousands of idle sessions.
        self._closed: list[tuple[BatchT, int]] = []
        self._bulk: dict[int, _Bulk] = {}
        # Ids whose fragments leave now, in turns; the others with a large payload wait in order.
        self._leaving: list[int] = []
        # Messages with the owners of payloads that are out. The peer holds a payload until its
        # owner comes, so these count among the few that may be on their way together.
        self._owner_batches: list[int] = []
        self._waiting: list[int] = []
        self.batch: BatchT = kind()
        self._open_bytes = 0
        self.queued_bytes = 0
        self.batches_taken = 0
        self._skipped = 0  # batches that were closed on purpose, before a frame
        self.pending_batch = 1  # always that number, those that are closed, and one
        self.memory: LinkMemory | None = None

    def __repr__(self) -> str:
        return (
            f"<Outbox {self.queued_bytes} bytes, {len(self._closed) + bool(self._open_bytes)} "
            f"batches, {len(self._bulk)} large payloads>"
        )

    def __bool__(self) -> bool:
        return self.queued_bytes > 0

    def is_clogged(self, max_bytes: int) -> bool:
        """Whether too much waits: over `max_bytes`, and over a few times the largest payload here.

        So a payload above the bound clogs nothing by itself: small frames travel beside it.
        """
        if self.queued_bytes <= max_bytes:
            return False
        largest = max((bulk.size for bulk in self._bulk.values()), default=0)
        return self.queued_bytes > LARGEST_WAITING * largest

    @property
    def leaving(self) -> BatchT:
        """The batch of the message that `take` gives next, for what is true when it leaves."""
        return self._closed[0][0] if self._closed else self.batch

    def added(self, payload_bytes: int = 0) -> None:
        """Tell that a frame was put into `batch`."""
        # An estimate. `take` subtracts the same number, so that an empty outbox counts exactly 0:
        # `bool(outbox)`, and with it whether a writer has anything to do, hangs on that.
        size = payload_bytes + wire.FRAME_OVERHEAD_BYTES
        self._open_bytes += size
        self.queued_bytes += size
        if self._open_bytes >= wire.BATCH_BYTES:
            self._close_batch()

    def close_batch(self) -> None:
        """Let later frames go into another message than those so far."""
        if self._open_bytes:
            self._skipped += 1
            self._close_batch()

    def _close_batch(self) -> None:
        self._closed.append((self.batch, self._open_bytes))
        self.batch = self._kind()
        self._open_bytes = 0
        self.pending_batch += 1

    def has_large(self, call_id: int) -> bool:
        """Whether a large payload of this id is still leaving; later frames must wait for it."""
        return call_id in self._bulk

    def send_large(self, call_id: int, payload: Payload, then: Callable[[], None]) -> None:
        """Send `payload` as fragments of `call_id`; `then` adds the frame that owns it."""
        self.queued_bytes += len(payload)
        bulk = self._bulk.get(call_id)
        if bulk is None:
            # An earlier small frame of this id may wait in a batch; fragments must not pass it: an
            # item of a stream would arrive before the one that was sent ahead of it.
            bulk = _Bulk(payload, self.batches_taken + len(self._closed) + bool(self._open_bytes))
            bulk.then.append((then, None))
            self._bulk[call_id] = bulk
            self._waiting.append(call_id)
        else:
            bulk.then.append((then, payload))

    def send_after_large(self, call_id: int, then: Callable[[], None]) -> None:
        """Add a small frame behind the large payloads of the same id."""
        self._bulk[call_id].then.append((then, b""))

    def drop_large(self, call_id: int) -> None:
        """Forget what is still to be sent of this id; the call is over."""
        bulk = self._bulk.pop(call_id, None) if self._bulk else None
        if bulk is not None:
            # What has left of it is at the peer, which is told of the end and drops it.
            self.queued_bytes -= bulk.left
            self.queued_bytes -= sum(len(later) for _, later in bulk.then if later is not None)
            if call_id in self._leaving:
                self._leaving.remove(call_id)
            else:
                self._waiting.remove(call_id)

    def take(self) -> bytes:
        """The next message, b"" if nothing waits."""
        # Fragments first: when the last one leaves, the frame that owns it is put into a batch, and
        # may leave in this very message, behind it.
        fragments: list[bytes | memoryview] = self._take_fragments() if self._bulk else []
        if self._closed:
            batch, size = self._closed.pop(0)
        else:
            batch, size = self.batch, self._open_bytes
            if not size and not fragments:
                return b""
            self.batch = self._kind()
            self._open_bytes = 0
            self.pending_batch += 1
        self.queued_bytes -= size
        self.batches_taken += 1
        # Two messages of protobuf, one behind the other, are one message: repeated fields add up.
        # So fragments are written by hand and never enter a protobuf object.
        small = batch.SerializeToString()
        return b"".join((*fragments, small)) if fragments else small

    def _start_waiting(self) -> None:
        while self._owner_batches and self._owner_batches[0] <= self.batches_taken:
            self._owner_batches.pop(0)
        free = wire.MAX_INTERLEAVED - len(self._leaving) - len(self._owner_batches)
        for _ in range(min(free, len(self._waiting))):
            self._leaving.append(self._waiting.pop(0))

    def _take_fragments(self) -> list[bytes | memoryview]:
        self._start_waiting()
        out: list[bytes | memoryview] = []
        budget = wire.FRAGMENT_BYTES
        for call_id in tuple(self._leaving):
            bulk = self._bulk[call_id]
            if bulk.after_batch > self.batches_taken:
                continue  # an earlier frame of its id has not left yet
            while bulk.left and budget > 0:
                if self.memory is not None and (place := bulk.lend(self.memory)) is not None:
                    self.queued_bytes -= place.size
                    budget -= wire.FRAME_OVERHEAD_BYTES
                    out.append(wire.encode_place(call_id, place))
                    continue
                chunk, begun = bulk.cut(budget)
                budget -= len(chunk)
                self.queued_bytes -= len(chunk)
                out.extend(wire.encode_fragment(call_id, chunk, begun))
            self._leaving.remove(call_id)
            if bulk.left or self._finish(bulk):
                self._leaving.append(call_id)  # at the end: large payloads take turns
            else:
                del self._bulk[call_id]
            if budget <= 0:
                break
        return out

    def _finish(self, bulk: _Bulk) -> bool:
        """Queue the frames behind a sent payload; whether another large payload follows."""
        then, _ = bulk.then.popleft()
        owner_batch = self._queued_by(then)
        while bulk.then:
            then, payload = bulk.then[0]
            if payload:
                bulk.load(payload)
                bulk.after_batch = owner_batch
                bulk.then[0] = (then, None)
                return True
            bulk.then.popleft()
            owner_batch = self._queued_by(then)
        self._owner_batches.append(owner_batch)
        return False

    def _queued_by(self, then: Callable[[], None]) -> int:
        """Queue a frame; returns the number of its message."""
        # `then` may close a batch before it adds the frame, which itself may close one.
        batch, skipped = self.pending_batch, self._skipped
        then()
        return batch + self._skipped - skipped
