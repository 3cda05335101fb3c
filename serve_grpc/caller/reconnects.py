"""When sessions that were lost are opened again: soon for a few, one after the other for hundreds.

A caller that loses a node loses all its sessions there at once, and Ray Serve lists the replicas
for some seconds more. Each try costs a millisecond of the loop that calls are made on, so a pool
tries no more than `TRIES_PER_S`, after the first few.
"""

from __future__ import annotations

__all__ = ["Reconnects"]

TRIES_PER_S = 100.0
AT_ONCE = 50
"""Tries beside those, after a time without any."""


class Reconnects:
    """Of one pool."""

    def __init__(self) -> None:
        self._taken_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Reconnects, the next from {self._taken_s:.3f} s on>"

    def due_s(self, now_s: float, pause_s: float) -> float:
        """When to try one, on the clock of `now_s`: not before `pause_s` is over."""
        # A leaky bucket: what is taken is the time of a try, wherever that lies ahead.
        self._taken_s = max(self._taken_s, now_s - AT_ONCE / TRIES_PER_S) + 1 / TRIES_PER_S
        return max(now_s + pause_s, self._taken_s)
