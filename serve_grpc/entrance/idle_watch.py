"""Ends a session whose caller has nothing to say for too long.

A caller that lives sends heartbeats. One that sends a message byte by byte, or does not read its
replies and so is not read from either, answers HTTP/2's pings all the same. Messages are counted,
not timed: they come by the ten thousand a second.
"""

from __future__ import annotations

import asyncio

from serve_grpc.entrance.unproven import Abortable

__all__ = ["IdleWatch"]


class IdleWatch:
    """Watches one session. Lives on the loop it is made on.

    Args:
        peer: By which it is cut off.
        max_silence_s: It is cut off after this many seconds without a message at the earliest, and
            after twice as many at the latest.

    Attributes:
        messages: How many came; the pump counts.
    """

    def __init__(self, peer: Abortable, max_silence_s: float) -> None:
        self.messages = 0
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._max_silence_s = max_silence_s
        self._before = 0
        self._timer = self._loop.call_later(max_silence_s, self._look)

    def _look(self) -> None:
        # A whole interval without a message. Shorter ones would cut off callers whose Python hangs,
        # while their gRPC goes on (docs/decisions/0014).
        if self.messages == self._before:
            self._peer.abort(f"nothing was heard for {self._max_silence_s:g} s")
            return
        self._before = self.messages
        self._timer = self._loop.call_later(self._max_silence_s, self._look)

    def close(self) -> None:
        """Stop watching: the session is over."""
        self._timer.cancel()
