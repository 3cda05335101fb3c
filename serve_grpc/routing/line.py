"""The line of calls that wait for a replica: first come, first served.

A call that comes back, because a replica was full or was lost, stands where it stood before. Calls
that ended while they waited are dropped when they reach the front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Line", "Waiting"]


class Waiting(Protocol):
    """What can wait in a line; its `sequence` tells where it stands."""

    sequence: int

    @property
    def done(self) -> bool:
        """Whether it ended while it waited: cancelled, or its deadline passed."""


T = TypeVar("T", bound=Waiting)


class Line(Generic[T]):
    """Calls in the order of their sequence numbers."""

    def __init__(self) -> None:
        self._calls: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[T]:
        return iter(self._calls)

    def add(self, call: T) -> None:
        """Put a call where it belongs: at the end, unless it stood here before."""
        # Most are new, and come last; most of those that come back stood first.
        calls = self._calls
        if not calls or call.sequence > calls[-1].sequence:
            calls.append(call)
        elif call.sequence < calls[0].sequence:
            calls.appendleft(call)
        else:
            index = next(i for i, other in enumerate(calls) if other.sequence > call.sequence)
            calls.insert(index, call)

    def head(self) -> T | None:
        """The first call that still waits."""
        # Here, not where a call ends: it would have to be looked for in the middle of the deque.
        while self._calls:
            if not self._calls[0].done:
                return self._calls[0]
            self._calls.popleft()
        return None

    def pop(self) -> T | None:
        """Take the first call that still waits."""
        call = self.head()
        if call is not None:
            self._calls.popleft()
        return call
