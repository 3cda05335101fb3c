"""Pickles of large objects, written and read piece by piece.

C's pickler hands large bytes, text and buffers to a file one by one, and its unpickler lets a file
read straight into the memory of the new object. So a large payload is never joined: what is sent
are the caller's own bytes, what is received lands in its object. An array is copied once on the way
out: the caller may change it as soon as `remote()` has returned.

For who reads nothing else it is a plain pickle. Else large buffers (pickle protocol 5) stay out of
it and follow it, so that the receiver's arrays lie where they arrived. Such a payload begins with a
zero byte, which begins no pickle, the number of buffers and their sizes.
"""

from __future__ import annotations

import functools
import pickle
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from serve_grpc.payload import (
    LARGE_BYTES,
    Memory,
    Payload,
    Segments,
    claimed,
    is_free,
    joined,
    passed_on,
    pieces,
    unwritten,
    with_refs,
)
from serve_grpc.shared_memory.blocks import HEAP, joined_in_place
from serve_grpc.shared_memory.copying import copy_into

__all__ = ["PICKLE_PROTOCOL", "copied_bytes", "dump", "load", "plain_pickle", "readable", "reduced"]

PICKLE_PROTOCOL = 5
_Owned = memoryview | bytearray
_COUNT = struct.Struct("<BI")
"""The zero byte, and how many buffers follow the pickle; then the size of each in eight bytes."""


class _Written:
    """A file for a pickler that keeps the pieces it writes, large ones in `memory`.

    Attributes:
        parts: Of the pickle, in order.
        sizes: Of the buffers that stay out of it, in bytes, in order.
        buffers: Their bytes; a piece may have several.
    """

    def __init__(self, memory: Memory | None) -> None:
        self.parts: list[bytes | memoryview] = []
        self.sizes: list[int] = []
        self.buffers: list[memoryview] = []
        self._memory = memory
        self._small: list[memoryview] = []
        self._in_a_row = 0

    def write(self, part: Any) -> None:
        """Keep `part`; what may still change is copied."""
        if (
            type(part) is pickle.PickleBuffer
        ):  # what C's pickler hands over has no length of its own
            part = part.raw()
        if self._memory is not None and len(part) >= LARGE_BYTES:
            kept = self._memory.keep(part)
            if kept is not None:
                self.parts.append(kept)
                return
        # Bytes never change: what is sent is the caller's own object, without a copy.
        self.parts.append(part if type(part) is bytes else HEAP.keep(part))

    def keep_out(self, buffer: pickle.PickleBuffer) -> bool:
        """Keep a buffer out of the pickle, if it is worth it; True where it is to go in."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: only its own class can make bytes of it
            return True
        size = raw.nbytes
        if size < LARGE_BYTES:
            # A few small ones cost least within the pickle. A long row of them is copied at once.
            if self._in_a_row < LARGE_BYTES:
                self._in_a_row += size
                return True
            self._small.append(raw)
        else:
            assert self._memory is not None
            self.gather()
            self._in_a_row = 0
            with raw:
                self.buffers.append(self._memory.keep(raw) or HEAP.keep(raw))
        self.sizes.append(size)
        return False

    def gather(self) -> None:
        """Copy the small buffers so far into one piece."""
        if self._small:
            assert self._memory is not None
            is_large = sum(map(len, self._small)) >= LARGE_BYTES
            kept = self._memory.gather(self._small) if is_large else None
            self.buffers.append(kept or HEAP.gather(self._small))
            self._small.clear()


def dump(value: Any, pickler: type[pickle.Pickler], memory: Memory | None = None) -> Payload:
    """Pickle `value` with a `pickler`; in pieces if it is large.

    Args:
        value: Any.
        pickler: Class of it.
        memory: Where large pieces and buffers go; None for the heap, and a plain pickle. Buffers
            that it has no room for stay out of the pickle all the same.
    """
    file = _Written(memory)
    if memory is None:
        pickler(file, PICKLE_PROTOCOL).dump(value)
    else:
        pickler(file, PICKLE_PROTOCOL, buffer_callback=file.keep_out).dump(value)
    if sizes := file.sizes:
        file.gather()
        head = _COUNT.pack(0, len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        return Segments([head, *file.parts, *file.buffers], has_buffers=True)
    payload = Segments(file.parts)
    return payload if len(payload) >= LARGE_BYTES else joined(payload)


def load(payload: Payload) -> Any:
    """The value of a pickle, a new one each time.

    Raises:
        Exception: Whatever unpickling raises, on bytes that are no pickle.
    """
    if not isinstance(payload, Segments):
        try:
            return pickle.loads(payload)
        except pickle.UnpicklingError:
            if payload[:1] != b"\0":
                raise
    arrived = _Arrived(payload)
    buffers = arrived.take_buffers(claimed)
    return pickle.Unpickler(arrived, buffers=buffers).load()


def copied_bytes(payload: Payload) -> int:
    """About how many bytes `load` copies, or another serializer: not those that stay in place."""
    size = len(payload)
    if type(payload) is not Segments or payload.stored is not None:
        return size
    try:
        sizes = frozenset(_Arrived(payload).take_sizes())
    except ValueError:  # it is no such payload, and whoever loads it says so
        return size
    # Large buffers are pieces of their own.
    return size - sum(len(p) for p in payload.parts if len(p) in sizes and is_free(p))


def plain_pickle(payload: Payload) -> bytes:
    """The same value as a pickle that any unpickler reads, in one piece."""
    arrived = _Arrived(payload)
    buffers = arrived.take_buffers(unwritten)  # it may have been loaded before, and written to
    if not buffers:
        return joined(payload)
    return pickle.dumps(_Buffered(arrived.read(len(payload)), buffers), PICKLE_PROTOCOL)


def reduced(payload: Payload) -> tuple[Any, ...]:
    """What the `__reduce__` of an object returns that unpickles to the payload's value.

    Buffers go beside the pickle, as those of an array do. What arrived in shared memory, and nobody
    has opened, goes there as it is.
    """
    arrived = _Arrived(payload)
    buffers = [pickle.PickleBuffer(b) for b in arrived.take_buffers(passed_on)]
    parts = arrived.take_rest()
    is_elsewhere = any(not part.readonly for part in parts)
    inner = _Joined(parts) if is_elsewhere else b"".join(parts)
    loads = functools.partial(pickle.loads, buffers=buffers) if buffers else pickle.loads
    return loads, (inner,)


class _Joined:
    """Pickles as bytes whose large pieces lie where they arrived. Args: `parts`, all of them."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        parts = [
            bytes(part) if part.readonly else pickle.PickleBuffer(passed_on(part))
            for part in self._parts
        ]
        return b"".join, (parts,)


def readable(payload: Payload, reads_buffers: bool) -> Payload:
    """The payload as a peer can read it. Args: `reads_buffers`, whether buffers may follow it."""
    if reads_buffers or type(payload) is not Segments or not payload.has_buffers:
        return payload
    plain = plain_pickle(payload)
    return with_refs(plain, payload.refs) if payload.refs else plain


class _Buffered:
    """Pickles as a pickle inside of a pickle, with the buffers of the inner one beside it."""

    def __init__(self, inner: bytes, buffers: list[memoryview | bytearray]) -> None:
        self._inner = inner
        self._buffers = buffers

    def __reduce__(self) -> tuple[Any, ...]:
        loads = functools.partial(pickle.loads, buffers=[_writable(b) for b in self._buffers])
        return loads, (self._inner,)


def _writable(buffer: memoryview | bytearray) -> bytearray:
    return buffer if isinstance(buffer, bytearray) else bytearray(buffer)


def _cut_up(
    views: list[memoryview], sizes: Sequence[int], own: Callable[[memoryview], _Owned]
) -> list[_Owned]:
    """Buffers of `sizes` bytes, one behind the other in `views`.

    A large one stays where it lies, if it can be written to; small ones are copied, for they would
    keep the piece that they came in. Args: `own`, as of `_Arrived.take_buffers`.
    """
    found: list[_Owned] = []
    rest = iter(views)
    view, at = memoryview(b""), 0
    for size in sizes:
        if at == len(view) and size:
            view, at = next(rest), 0
        if at + size > len(view):  # it goes on in the next one
            parts, left = [view[at:]], size - (len(view) - at)
            while left:
                view = next(rest)
                at = min(left, len(view))
                parts.append(view[:at])
                left -= at
            found.append(joined_in_place(parts))
            continue
        part = view[at : at + size]
        at += size
        if size < LARGE_BYTES:
            found.append(bytearray(part))
        else:
            found.append(joined_in_place([part]) if part.readonly else own(part))
    return found


class _Arrived:
    """A file for an unpickler over the pieces of a payload."""

    def __init__(self, payload: Payload) -> None:
        self._views = [memoryview(part) for part in reversed(pieces(payload))]

    def take_buffers(self, own: Callable[[memoryview], _Owned]) -> list[_Owned]:
        """Take off the front what tells of buffers, and the buffers off the end.

        Args:
            own: What is taken of a piece that can be written to.

        Raises:
            ValueError: There are not so many bytes.
        """
        sizes = self.take_sizes()
        return _cut_up(self._take_last(sum(sizes)), sizes, own)

    def take_sizes(self) -> Sequence[int]:
        """Take off the front what tells of buffers: the size of each, in bytes.

        Raises:
            ValueError: There are not so many bytes.
        """
        if not self._views or not len(self._views[-1]) or self._views[-1][0] != 0:
            return ()
        head = self._take(_COUNT.size)
        _, count = _COUNT.unpack(head)
        left = sum(map(len, self._views))
        if 8 * count > left:
            raise ValueError(f"a payload of {left} bytes cannot have {count} buffers")
        sizes = struct.unpack(f"<{count}Q", self._take(8 * count))
        if sum(sizes) > left - 8 * count:
            raise ValueError("the buffers of a payload are larger than it is")
        return sizes

    def take_rest(self) -> list[memoryview]:
        """All that is left, in order."""
        rest, self._views = self._views[::-1], []
        return rest

    def _take(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise ValueError("a payload ends before its buffers")
        return data

    def _take_last(self, size: int) -> list[memoryview]:
        """The last `size` bytes, in order."""
        taken: list[memoryview] = []
        while size:
            view = self._views.pop(0)
            if len(view) > size:
                self._views.insert(0, view[: len(view) - size])
                view = view[len(view) - size :]
            taken.append(view)
            size -= len(view)
        return taken[::-1]

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer`, as far as there is data."""
        # C's unpickler asks for this where it has made a large object already, to fill it in place.
        target = memoryview(buffer).cast("B")
        filled = 0
        while self._views and filled < len(target):
            view = self._cut(len(target) - filled)
            # One piece may be all of a payload; while it is copied, other threads run.
            copy_into(target[filled : filled + len(view)], view)
            filled += len(view)
            if filled < len(target):
                # Other threads have a turn now, instead of after the interpreter's switch interval.
                time.sleep(0)
        return filled

    def read(self, size: int) -> bytes:
        """The next `size` bytes, as far as there are so many."""
        parts = []
        while self._views and size > 0:
            parts.append(self._cut(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def readline(self) -> bytes:
        """One line; only opcodes of pickle protocol 0 ask for it."""
        # C's unpickler refuses a file that cannot do this, whether or not it needs it.
        line = b""
        while self._views and not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def _cut(self, size: int) -> memoryview:
        view = self._views.pop()
        if len(view) > size:
            self._views.append(view[size:])
            view = view[:size]
        return view
