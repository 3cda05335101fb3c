"""The row of calls that wait for a replica: first come, first served.

A call that comes back, because a replica was full or was lost, stands where it stood before. Calls
that ended while they waited are dropped when they reach the front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Row", "Waiting"]


class Waiting(Protocol):
    """What can stand in a row: `sequence` is its place, `done` whether it ended meanwhile."""

    sequence: int
    done: bool


T = TypeVar("T", bound=Waiting)


class Row(Generic[T]):
    """Calls in the order of their sequence numbers."""

    def __init__(self) -> None:
        self._calls: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[T]:
        return iter(self._calls)

    def add(self, call: T) -> None:
        """Put a call where it belongs: at the end, unless it stood here before."""
        calls = self._calls
        if not calls or call.sequence > calls[-1].sequence:
            calls.append(call)
        elif call.sequence < calls[0].sequence:
            calls.appendleft(call)
        else:
            place = next(i for i, other in enumerate(calls) if other.sequence > call.sequence)
            calls.insert(place, call)

    def head(self) -> T | None:
        """The first call that still waits."""
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
