"""Large blocks of this process's own memory, for what is copied once and then only read or kept.

Memory that is touched for the first time costs a page fault for each 4 KiB, many times the copy
into it; malloc gives such memory for every object above 32 MiB. So blocks are made of pages of 2
MiB, and used again (docs/decisions/0024-large-payloads-over-grpc.md). Invariant: a block is used
again, or unmapped, when its last view is gone, and by nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from serve_grpc.config import settings
from serve_grpc.shared_memory.copying import copy_all, copy_into
from serve_grpc.shared_memory.memory_limits import default_pool_bytes
from serve_grpc.shared_memory.pool import IDLE_S

__all__ = [
    "BLOCK_BYTES",
    "HEAP",
    "BlockCache",
    "Heap",
    "is_block",
    "joined_in_place",
    "keep_freed_memory",
    "new_block",
]

BLOCK_BYTES = 4 * 1024 * 1024
"""From here on a block is worth a mapping: at least two pages of 2 MiB."""
PAGE_BYTES = 2 * 1024 * 1024
SHARE = 2
"""Idle blocks take one part in so many of what the pool of shared memory may take."""
TRIM_S = 10.0
MESSAGES_BYTES = 16 * 1024 * 1024
"""Well above what the messages of a large payload take while they are copied from one to the next
within gRPC."""

_HUGE_PAGES: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


class _Watch(weakref.ref[Any]):
    """Sees the last view of a block go."""

    __slots__ = ("mapping",)

    mapping: mmap.mmap

    __hash__ = object.__hash__  # ctypes arrays have none
    __eq__ = object.__eq__


class BlockCache:
    """Blocks that are idle, for a while. Any thread may call, and so may finalizers.

    There is no lock: single operations on lists and sets are whole in CPython, and a finalizer may
    come in the midst of any line here.

    Args:
        max_idle_bytes: The most that idle blocks take together, in bytes.
        idle_s: After so many seconds without use a block is unmapped, or a little later.
    """

    def __init__(self, max_idle_bytes: int, idle_s: float = IDLE_S, trim_s: float = TRIM_S) -> None:
        self._max_idle_bytes = max_idle_bytes
        self._idle_s, self._trim_s = idle_s, trim_s
        self._idle: list[tuple[mmap.mmap, float]] = []
        self._watches: set[_Watch] = set()
        self._trimmer: threading.Thread | None = None

    @property
    def idle_bytes(self) -> int:
        """What idle blocks take."""
        return sum(len(mapping) for mapping, _ in tuple(self._idle))

    def new_block(self, size: int) -> memoryview | None:
        """As the function `new_block`."""
        mapping = self._take(size) or _map(size)
        if mapping is None:
            return None
        hold: Any = (ctypes.c_char * len(mapping)).from_buffer(mapping)
        hold.is_block = True
        # Of the array, for the end of a mapping itself cannot be watched; all views hold the array.
        watch = _Watch(hold, self._on_collected)
        watch.mapping = mapping
        self._watches.add(watch)
        if self._trimmer is None:
            self._start_trimmer()
        return memoryview(hold).cast("B")[:size]

    def _take(self, size: int) -> mmap.mmap | None:
        # The one that was used last first: its pages are in the processor's cache, if any are.
        for entry in reversed(tuple(self._idle)):
            if size <= len(entry[0]) <= 2 * size:
                try:
                    self._idle.remove(entry)
                except ValueError:  # another thread was faster
                    continue
                return entry[0]
        return None

    def _on_collected(self, watch: weakref.ref[Any]) -> None:
        # A finalizer: it takes no lock and starts nothing.
        assert isinstance(watch, _Watch)
        self._watches.discard(watch)
        if self.idle_bytes + len(watch.mapping) <= self._max_idle_bytes:
            self._idle.append((watch.mapping, time.monotonic()))

    def trim(self, now: float) -> None:
        """Unmap what has been idle for long. Args: `now`, on `time.monotonic`."""
        for entry in tuple(self._idle):
            if now - entry[1] >= self._idle_s:
                try:
                    self._idle.remove(entry)
                except ValueError:  # it is in use again
                    continue

    def _start_trimmer(self) -> None:
        # Two threads may both start one; that does no harm.
        self._trimmer = threading.Thread(target=self._run, name="serve_grpc-blocks", daemon=True)
        self._trimmer.start()

    def _run(self) -> None:
        # Not from a timer of a loop: blocks outlive sessions and loops.
        while self._watches or self._idle:
            time.sleep(self._trim_s)
            self.trim(time.monotonic())
        self._trimmer = None
        if self._watches or self._idle:  # one was made meanwhile
            self._start_trimmer()


def _map(size: int) -> mmap.mmap | None:
    whole_pages = -(-size // PAGE_BYTES) * PAGE_BYTES  # or Linux would not align it to them
    try:
        mapping = mmap.mmap(-1, whole_pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if _HUGE_PAGES is not None:
            mapping.madvise(_HUGE_PAGES)
    except OSError:  # the heap may still have room, and says so itself if it has none
        return None
    return mapping


_made: dict[str, BlockCache] = {}


def _cache() -> BlockCache:
    if not _made:
        configured = settings.local_pool_bytes
        pool_bytes = default_pool_bytes() if configured is None else configured
        _made.setdefault("cache", BlockCache(pool_bytes // SHARE))
    return _made["cache"]


def new_block(size: int) -> memoryview | None:
    """Writable memory. What is in it is of no meaning, and nobody may be shown it.

    Args:
        size: In bytes, above 0.

    Returns:
        A view of all of it; None if the process may map no more.
    """
    return _cache().new_block(size)


def is_block(piece: bytes | memoryview) -> bool:
    """Whether it is a view of such a block."""
    return type(piece) is memoryview and getattr(piece.obj, "is_block", False)


def joined_in_place(views: Sequence[memoryview]) -> memoryview | bytearray:
    """A copy of `views`, one behind the other, that may be written to."""
    size = sum(map(len, views))
    block = new_block(size) if size >= BLOCK_BYTES else None
    if block is None:
        return bytearray().join(views)
    copy_all(block, views)
    return block


def keep_freed_memory() -> None:
    """Let malloc use the memory of one message for the next one.

    At first glibc's gives back to the system what is freed of 128 KiB and more, and each message
    would be made of memory that is touched for the first time. It learns from what a process frees:
    what is not larger than that is kept from then on, up to twice as much. Most processes that
    handle large objects have taught it so by themselves; other libraries take no notice.
    """
    if "heap" not in _taught:
        _taught.add("heap")
        bytes(MESSAGES_BYTES)  # zeros of the system's, never touched


_taught: set[str] = set()


class Heap:
    """Is a `payload.Memory` that no other process reads, and that always has room."""

    def keep(self, piece: bytes | memoryview) -> memoryview:
        """As of `Memory`; bytes never change, and are kept as they are."""
        if type(piece) is bytes:
            return memoryview(piece)
        block = new_block(len(piece)) if len(piece) >= BLOCK_BYTES else None
        if block is None:
            return memoryview(bytes(piece))
        copy_into(block, piece)
        return block.toreadonly()

    def gather(self, pieces: Sequence[memoryview]) -> memoryview:
        """As of `Memory`."""
        return memoryview(joined_in_place(pieces)).toreadonly()


HEAP = Heap()
