"""Where a stream's producer waits for credit: on an event loop, or in a thread of its own.

A gate may be held shut whatever the credit: a caller that grants much and reads nothing would
otherwise fill the replica's memory.
"""

from __future__ import annotations

import asyncio
import threading

from serve_grpc.protocol.flow import ProducerWindow

__all__ = ["LoopGate", "ThreadGate"]

MAX_UNTAKEN_ITEMS = 1024
MAX_UNTAKEN_BYTES = 16 * 1024 * 1024
"""Made in a thread and not yet taken over by the replica's loop, which busy threads may starve.
With the default window a stream never has as many; twenty with credit without end had made 628 MiB
of them in three seconds (docs/decisions/0014-limits-against-hostile-peers.md)."""


class LoopGate:
    """For a generator that runs on the event loop. All methods are called there."""

    def __init__(self, items: int, bytes_: int, *, is_held: bool = False) -> None:
        self._window = ProducerWindow(items, bytes_)
        self._is_held = is_held
        self._is_closed = False
        self._wake: asyncio.Future[None] | None = None

    def try_enter(self, size: int) -> bool:
        """Whether an item of `size` bytes may be sent now; then it counts as sent."""
        if self._is_closed or self._is_held or not self._window.is_open:
            return False
        self._window.spend(size)
        return True

    async def enter(self, size: int) -> bool:
        """Return True when an item of `size` bytes may be sent, False once the gate is closed.

        For one that `try_enter` did not let in, as it does most.
        """
        # Again and again: a wake says that something changed, not that the gate is open.
        while not self._is_closed and (self._is_held or not self._window.is_open):
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._window.spend(size)
        return not self._is_closed

    def grant(self, items: int, bytes_: int) -> None:
        """Let the producer go on."""
        self._window.grant(items, bytes_)
        self._look_again()

    def hold(self, is_held: bool) -> None:
        """Shut the gate, or leave it to the credit again."""
        self._is_held = is_held
        self._look_again()

    def close(self) -> None:
        """Let the producer go its way: nobody wants its items."""
        self._is_closed = True
        self._look_again()

    def _look_again(self) -> None:
        # Done already if it was woken in this turn, or if the producer's task was cancelled.
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class ThreadGate:
    """For a generator that runs in a thread; the other methods are called on event loops."""

    def __init__(self, items: int, bytes_: int, *, is_held: bool = False) -> None:
        self._window = ProducerWindow(items, bytes_)
        self._is_held = is_held
        self._untaken_items = self._untaken_bytes = 0
        # `notify`, not `notify_all`: the one thread that waits is the generator's.
        self._changed = threading.Condition()
        self._is_closed = False

    def enter(self, size: int) -> bool:
        """Sleep until an item of `size` bytes may be sent; False once the gate is closed."""
        with self._changed:
            self._changed.wait_for(self._may_enter)
            # Counted though the gate may be closed: nobody looks at the window any more then.
            self._window.spend(size)
            self._untaken_items += 1
            self._untaken_bytes += size
            return not self._is_closed

    def _may_enter(self) -> bool:
        return self._is_closed or (
            self._window.is_open
            and not self._is_held
            and self._untaken_items < MAX_UNTAKEN_ITEMS
            and self._untaken_bytes < MAX_UNTAKEN_BYTES
        )

    def taken_over(self, size: int) -> None:
        """The replica's loop took one item over."""
        with self._changed:
            self._untaken_items -= 1
            self._untaken_bytes -= size
            self._changed.notify()

    def grant(self, items: int, bytes_: int) -> None:
        """Let the producer go on."""
        with self._changed:
            self._window.grant(items, bytes_)
            self._changed.notify()

    def hold(self, is_held: bool) -> None:
        """Shut the gate, or leave it to the credit again."""
        with self._changed:
            self._is_held = is_held
            self._changed.notify()

    def close(self) -> None:
        """Let the producer's thread end: nobody wants its items."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
