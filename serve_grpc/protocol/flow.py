"""Credit of one stream: how much its producer may send before its consumer has taken some.

The consumer counts what it took and grants it back once half a window is due, so a slow consumer
pauses its own producer and nobody else. A window counts items and bytes; an item may start while
some of each is left, however large it is. So one that is larger than the window passes, too, alone.
"""

from __future__ import annotations

__all__ = ["ConsumerWindow", "GrantedCredit", "ProducerWindow"]


class ProducerWindow:
    """What the producer of a stream may still send."""

    def __init__(self, items: int, bytes_: int) -> None:
        self._items = items
        self._bytes = bytes_

    def __repr__(self) -> str:
        return f"<ProducerWindow {self._items} items, {self._bytes} bytes left>"

    @property
    def is_open(self) -> bool:
        """Whether one more item may be sent."""
        return self._items > 0 and self._bytes > 0

    def is_within(self, items: int, bytes_: int) -> bool:
        """Whether no more than this may be sent."""
        return self._items <= items and self._bytes <= bytes_

    def spend(self, bytes_: int) -> None:
        """Count one item as sent."""
        # Bytes may go below zero: an item larger than the window passes, alone.
        self._items -= 1
        self._bytes -= bytes_

    def grant(self, items: int, bytes_: int) -> None:
        """Add what the consumer gave back."""
        self._items += items
        self._bytes += bytes_


class ConsumerWindow:
    """What the consumer of a stream took, and has not granted again yet."""

    def __init__(self, items: int, bytes_: int) -> None:
        # Credit for each item would cost a frame each; with credit for a whole window the producer
        # would have to stop until it arrives.
        self._half_items = max(1, items // 2)
        self._half_bytes = max(1, bytes_ // 2)
        self._items = 0
        self._bytes = 0

    def took(self, bytes_: int) -> tuple[int, int] | None:
        """Count one item as consumed.

        Returns:
            (items, bytes) to grant to the producer now, or None while less than half a window is
            due.
        """
        self._items += 1
        self._bytes += bytes_
        if self._items < self._half_items and self._bytes < self._half_bytes:
            return None
        # Both counts go back together, whichever of them reached its half.
        due = self._items, self._bytes
        self._items = self._bytes = 0
        return due


class GrantedCredit:
    """What the caller has granted to each stream of a session, so that a replica cannot take more.

    Invariant: counted when it is queued, so it is never less than the replica knows of.

    Attributes:
        windows: Of each stream that is not over; most sessions have none.
    """

    def __init__(self) -> None:
        self.windows: dict[int, ProducerWindow] = {}

    def open(self, call_id: int, items: int, bytes_: int) -> None:
        """Begin a stream with its first credit."""
        self.windows[call_id] = ProducerWindow(items, bytes_)

    def grant(self, call_id: int, items: int, bytes_: int) -> None:
        """Add to a stream that is open."""
        self.windows[call_id].grant(items, bytes_)

    def spend(self, call_id: int, bytes_: int) -> bool:
        """Count one item of a call; False if it is no stream, or has no credit left."""
        # No window: a unary call, whose replica has no right to any item.
        window = self.windows.get(call_id)
        if window is None or not window.is_open:
            return False
        window.spend(bytes_)
        return True
