"""Credit of one stream: how much its producer may send before its consumer has taken some.

The consumer counts what it took and grants it back once half a window is due, so a slow consumer
pauses its own producer and nobody else. A window counts items and bytes; an item may start while
any of both is left, so one larger than the window still passes, alone.
"""

from __future__ import annotations

__all__ = ["ConsumerWindow", "ProducerWindow"]


class ProducerWindow:
    """What may still be sent."""

    def __init__(self, items: int, bytes_: int) -> None:
        self._items = items
        self._bytes = bytes_

    def __repr__(self) -> str:
        return f"<ProducerWindow {self._items} items, {self._bytes} bytes left>"

    @property
    def is_open(self) -> bool:
        """Whether one more item may be sent."""
        return self._items > 0 and self._bytes > 0

    def spend(self, bytes_: int) -> None:
        """Count one item as sent."""
        self._items -= 1
        self._bytes -= bytes_

    def grant(self, items: int, bytes_: int) -> None:
        """Add what the consumer gave back."""
        self._items += items
        self._bytes += bytes_


class ConsumerWindow:
    """What was taken and not yet given back."""

    def __init__(self, items: int, bytes_: int) -> None:
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
        due = self._items, self._bytes
        self._items = self._bytes = 0
        return due
