"""Puts payloads together that arrive in fragments, until the frame that owns them arrives.

Fragments are kept as views of their messages, and never joined. Of a piece whose size is told
beforehand there is a block instead, into which fragments are copied as they come: then a message is
free at once, and the piece lies where it can be used. Invariant: what is held, blocks in full, is
never over the limit of the session.
"""

from __future__ import annotations

from collections.abc import Container

from serve_grpc.payload import Payload, Segments
from serve_grpc.protocol.wire import MAX_UNFINISHED_IDS, WireError
from serve_grpc.shared_memory.blocks import BLOCK_BYTES, is_block, new_block

__all__ = ["Assembler", "PayloadOverflow"]

BYTES_PER_PIECE = 1024
"""Unfinished payloads in smaller pieces than these, on average, are held up to a lower limit: a
piece costs memory of its own."""


class PayloadOverflow(Exception):
    """The fragments of one id are over the limit; that id's call fails."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Assembler:
    """Collects fragments. Args: limits of one payload, and of all that are not finished."""

    def __init__(self, max_payload_bytes: int, max_total_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._max_total_bytes = max_total_bytes
        # Each id may have one small piece, so that many calls with little payload never meet this.
        self._max_pieces = MAX_UNFINISHED_IDS + max_total_bytes // BYTES_PER_PIECE
        self._pieces = 0
        self._parts: dict[int, list[bytes | memoryview]] = {}
        self._sizes: dict[int, int] = {}
        # What is still to be filled of a block, which is the last part of its id.
        self._unfilled: dict[int, memoryview] = {}
        self.total_bytes = 0

    def add(self, call_id: int, data: bytes | memoryview, piece_size: int = 0) -> None:
        """Keep one fragment.

        A payload over the limit is dropped as it grows; `take` then reports it.

        Args:
            call_id: Of its payload.
            data: Bytes of it.
            piece_size: Of the piece that begins with `data`, as the peer says; 0 for one that is
                not told of. A size that is not true changes nothing but where bytes are kept.

        Raises:
            WireError: The peer holds more unfinished payload than allowed.
        """
        if call_id not in self._sizes and len(self._sizes) >= MAX_UNFINISHED_IDS:
            raise WireError(f"over {MAX_UNFINISHED_IDS} unfinished payloads")
        before = self._sizes.get(call_id, 0)
        self._sizes[call_id] = size = before + len(data)
        if size > self._max_payload_bytes:
            # Its call fails when the owner comes, and no other; until then only its size is kept.
            self._forget_parts(call_id)
            return
        if not data:
            return  # no piece; but its id is remembered, and counts among those
        if piece_size >= BLOCK_BYTES and before + piece_size <= self._max_payload_bytes:
            self._begin_block(call_id, piece_size)
        if self._unfilled:
            data = self._fill(call_id, data)
            if not data:
                return
        self._keep(call_id, data)

    def _begin_block(self, call_id: int, size: int) -> None:
        # Counted in full before a byte of it is touched. One that does not fit is no lie: all
        # payloads together may be finished before that much has come.
        if call_id in self._unfilled or self.total_bytes + size > self._max_total_bytes:
            return
        block = new_block(size)
        if block is not None:
            self._keep(call_id, block)
            self._unfilled[call_id] = block

    def _fill(self, call_id: int, data: bytes | memoryview) -> bytes | memoryview:
        """Copy into the block of `call_id`; what is left over."""
        space = self._unfilled.get(call_id)
        if space is None:
            return data
        count = min(len(space), len(data))
        space[:count] = data[:count]
        if count == len(space):
            del self._unfilled[call_id]
        else:
            self._unfilled[call_id] = space[count:]
        return data[count:]

    def _keep(self, call_id: int, part: bytes | memoryview) -> None:
        self._pieces += 1
        if self._pieces > self._max_pieces:
            raise WireError(f"unfinished payloads in over {self._max_pieces} pieces")
        self._parts.setdefault(call_id, []).append(part)
        self.total_bytes += len(part)
        if self.total_bytes > self._max_total_bytes:
            raise WireError(f"over {self._max_total_bytes} bytes of unfinished payloads")

    def take(self, call_id: int, tail: bytes, is_read_once: bool = True) -> Payload:
        """The whole payload of `call_id`, which ends with `tail`.

        Args:
            call_id, tail: As said.
            is_read_once: Nobody will read it a second time; so who does may write to its blocks.

        Raises:
            PayloadOverflow: It was over the limit.
        """
        # Not in `_parts`: of a payload over the limit only the size is left, and has to be told.
        if call_id not in self._sizes:  # most payloads: no fragments
            if len(tail) > self._max_payload_bytes:
                raise PayloadOverflow(len(tail))
            return tail
        size = self._sizes.pop(call_id) + len(tail)
        parts = self._forget_parts(call_id)
        if size > self._max_payload_bytes:
            raise PayloadOverflow(size)
        if not is_read_once:
            parts = [_read_only(part) for part in parts]
        return Segments((*parts, tail) if tail else parts)

    def discard(self, call_id: int) -> None:
        """Drop what is held for a call that is over."""
        if call_id in self._sizes:
            del self._sizes[call_id]
            self._forget_parts(call_id)

    def keep_only(self, call_ids: Container[int]) -> None:
        """Drop what is held for all other calls."""
        for call_id in [i for i in self._sizes if i not in call_ids]:
            self.discard(call_id)

    def clear(self) -> None:
        """Drop everything held."""
        self._parts.clear()
        self._sizes.clear()
        self._unfilled.clear()
        self.total_bytes = self._pieces = 0

    def _forget_parts(self, call_id: int) -> list[bytes | memoryview]:
        parts = self._parts.pop(call_id, [])
        self._pieces -= len(parts)
        self.total_bytes -= sum(map(len, parts))
        space = self._unfilled.pop(call_id, None) if self._unfilled else None
        if space is not None:  # less came than was said
            parts[-1] = parts[-1][: len(parts[-1]) - len(space)]
        return parts


def _read_only(part: bytes | memoryview) -> bytes | memoryview:
    # Not what lies in shared memory: there each reader gets what was sent (`payload.claimed`).
    return part.toreadonly() if isinstance(part, memoryview) and is_block(part) else part
