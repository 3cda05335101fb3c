"""The shared memory of this process: one pool, for all its peers.

What is idle goes back whether or not there are links, and whether or not their loops still run: a
thread looks at the pool for as long as it has something, and sleeps until something may be due.
"""

from __future__ import annotations

import _thread
import logging
import sys
import threading
import time
import weakref
from typing import Protocol

from serve_grpc.config import LOGGER_NAME, settings
from serve_grpc.shared_memory.memory_limits import default_pool_bytes, limit_bytes
from serve_grpc.shared_memory.pieces import Pieces
from serve_grpc.shared_memory.pool import IDLE_S, SegmentPool
from serve_grpc.shared_memory.ranges import PoolStatistics
from serve_grpc.shared_memory.segments import is_available

__all__ = ["Borrower", "ProcessMemory", "process_memory"]

logger = logging.getLogger(LOGGER_NAME)

PEER_SHARE = 2
"""One peer holds one part in so many of the pool, at the most."""


class Borrower(Protocol):
    """One link that pieces are lent over."""

    def on_segment_closed(self, number: int) -> None:
        """A segment is no more, of the pool or passed on. Called in any thread."""


class ProcessMemory:
    """A pool and the links that its pieces are lent over. Any thread may call.

    Args:
        max_bytes: The most that is kept, in bytes; 0 for none.

    Attributes:
        pieces: Where serializers put large pieces; None if there is no such memory here.
        peer_bytes: The most that one peer may hold, in bytes.
        most_mapped: The most that is mapped of one peer's memory, in bytes. It counts as the
            peer's, and here it only takes addresses.
    """

    def __init__(self, max_bytes: int) -> None:
        self._links: weakref.WeakSet[Borrower] = weakref.WeakSet()
        # Re-entrant: a user's finalizer may run in the midst of the lines below, and make a call.
        self._lock = threading.RLock()
        self._is_watched = False
        self._pool = SegmentPool(
            max_bytes, time.monotonic, self.on_closed, on_made=self._keep_watch
        )
        self.peer_bytes = max_bytes // PEER_SHARE
        # Read here, for each look at the system's files takes a millisecond.
        self.most_mapped = limit_bytes() or sys.maxsize
        self.pieces = Pieces(self._pool) if max_bytes and is_available() else None

    def __repr__(self) -> str:
        return f"<ProcessMemory {self._pool!r}>"

    @property
    def statistics(self) -> PoolStatistics:
        """What the pool has, and what it has done."""
        return self._pool.statistics()

    def add(self, link: Borrower) -> None:
        """Tell `link` of segments that are closed."""
        with self._lock:
            self._links.add(link)

    def remove(self, link: Borrower) -> None:
        """Tell it no more. With the last link goes what nobody uses."""
        with self._lock:
            self._links.discard(link)
            is_last = not self._links
        self._pool.trim(time.monotonic() + IDLE_S if is_last else None)

    def trim(self, now: float | None = None) -> None:
        """Give back what has been idle for long.

        Args:
            now: On `time.monotonic`; None for now.
        """
        self._pool.trim(now)

    def _keep_watch(self) -> None:
        with self._lock:
            if self._is_watched:
                return
            self._is_watched = True
        try:
            # Not `threading`: it has locks that a finalizer, which may come here, could wait for.
            _thread.start_new_thread(_watch, (weakref.ref(self),))
        except RuntimeError as error:  # no more threads; the next segment tries again
            logger.debug("no thread watches what of the shared memory is idle: %s", error)
            self._is_watched = False

    def _look(self) -> float | None:
        """Give back what is idle; returns when to look again, None if another thread does."""
        # Before the look, for who makes a segment after it starts another thread. Not with the
        # lock: a finalizer of the user's may run in here, and wait for whoever waits for the lock.
        self._is_watched = False
        left = self._pool.trim()
        if left is None:
            return None
        with self._lock:
            is_first, self._is_watched = not self._is_watched, True
        return left if is_first else None

    def on_closed(self, number: int) -> None:
        """Tell all links that a segment is no more. Args: `number`, of `pieces.Lendable`."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.on_segment_closed(number)


def _watch(found: weakref.ref[ProcessMemory]) -> None:
    left: float | None = IDLE_S
    while left is not None:
        time.sleep(left)
        memory = found()
        left = memory._look() if memory is not None else None
        del memory  # not held while this sleeps


_made: dict[str, ProcessMemory] = {}


def process_memory() -> ProcessMemory:
    """That of this process, the same for all threads."""
    if not _made:
        configured = settings.local_pool_bytes
        made = ProcessMemory(default_pool_bytes() if configured is None else configured)
        # Of several threads that come first, all get one: two pools would give segments the same
        # numbers. Without a lock, for a finalizer may come here as well.
        _made.setdefault("memory", made)
    return _made["memory"]
