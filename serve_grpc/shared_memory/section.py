"""A lock that a finalizer cannot be caught in.

Python may run a finalizer wherever something is allocated, also in a thread that holds a lock, and
the user's finalizers may make calls. A plain lock would then wait for itself for ever; a re-entrant
one would let the finalizer change what is being changed. Here it is let in and told to go.
"""

from __future__ import annotations

import threading

__all__ = ["Section"]


class Section:
    """`with section as is_mine:` one thread at a time; `is_mine` is false inside of itself."""

    __slots__ = ("_depth", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0

    def __enter__(self) -> bool:
        self._lock.acquire()
        # Who comes in between these two lines is gone before the second is reached.
        self._depth += 1
        return self._depth == 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        self._lock.release()
