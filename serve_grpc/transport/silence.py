"""Ends a session whose caller has nothing to say for too long.

A caller that lives sends heartbeats. One that sends a message byte by byte, or does not read its
replies and so is not read from either, answers HTTP/2's pings all the same. Messages are counted,
not timed: they come by the ten thousand a second.
"""

from __future__ import annotations

from serve_grpc.transport.ending import Ending

__all__ = ["Listener"]


class Listener:
    """Watches one session. Lives on the loop it is made on.

    Args:
        ending: Ends it, after `max_silence_s` without a message, or up to twice as long.

    Attributes:
        messages: How many came; the owner counts.
    """

    def __init__(self, ending: Ending, max_silence_s: float) -> None:
        self.messages = 0
        self._ending = ending
        self._loop = ending.task.get_loop()
        self._max_silence_s = max_silence_s
        self._before = 0
        self._timer = self._loop.call_later(max_silence_s, self._look)

    def _look(self) -> None:
        if self.messages == self._before:
            self._ending.end(f"nothing was heard for {self._max_silence_s:g} s")
            return
        self._before = self.messages
        self._timer = self._loop.call_later(self._max_silence_s, self._look)

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
