"""Makes the memory of a pool: at once, or a thread does.

To make 64 MiB takes 70 ms and more, and an event loop that does so carries no session meanwhile.
So on a loop only a little is made at once, and a thread makes the rest, for those who come next.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
from collections.abc import Callable

from serve_grpc.config import LOGGER_NAME
from serve_grpc.shared_memory.segments import Segment, create

__all__ = ["LOOP_BYTES", "Maker"]

logger = logging.getLogger(LOGGER_NAME)

LOOP_BYTES = 4 * 1024 * 1024
"""More is not made on an event loop, unless a single range needs it. This takes 2 to 4 ms."""


class Maker:
    """Makes segments. Args: `has_room`, whether the system has room for so many bytes.

    Attributes:
        growing: Classes of ranges for which a thread makes a segment.
    """

    def __init__(self, has_room: Callable[[int], bool]) -> None:
        self.growing: set[int] = set()
        self._has_room = has_room

    def share_out(self, range_bytes: int, count: int) -> tuple[int, int]:
        """How many of `count` ranges to make at once, and how many to give to `beside`."""
        at_once = max(1, LOOP_BYTES // range_bytes)
        if count <= at_once or asyncio._get_running_loop() is None:
            return count, 0
        # One thread for a class is enough: those who come meanwhile make little themselves.
        if range_bytes in self.growing:
            return at_once, 0
        self.growing.add(range_bytes)
        return at_once, count - at_once

    def make(self, size: int) -> Segment | None:
        """A segment of `size` bytes; None if memory or descriptors are short."""
        try:
            return create(size) if self._has_room(size) else None
        except OSError:
            return None  # counted as `short` by who asked; the payload travels otherwise

    def beside(
        self, range_bytes: int, count: int, done: Callable[[int, int, Segment | None], object]
    ) -> None:
        """Let a thread make a segment.

        Args:
            range_bytes, count: What ranges it is for; of `share_out`.
            done: Called with both and the segment, or None if there is none; in any thread.
        """

        def work() -> None:
            memory = self.make(count * range_bytes)
            self.growing.discard(range_bytes)
            done(range_bytes, count, memory)

        try:
            # Not `threading`: it has locks that a finalizer, which may come here, could wait for.
            _thread.start_new_thread(work, ())
        except RuntimeError as error:  # no more threads; there is less for those who come next
            logger.debug("no thread for shared memory: %s", error)
            self.growing.discard(range_bytes)
            done(range_bytes, count, None)
