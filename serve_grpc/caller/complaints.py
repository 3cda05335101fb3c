"""Warnings about one replica, which go on for as long as there is a reason, rarer and rarer.

The first is said at once, so that whoever looks at the log sees it; after that each pause is twice
the one before.
"""

from __future__ import annotations

import logging
import time

from serve_grpc.config import LOGGER_NAME

__all__ = ["Complaints"]

logger = logging.getLogger(LOGGER_NAME)

PAUSE_S = (30.0, 600.0)
"""First and longest time from one to the next. Twice the longest without one makes it the first."""


class Complaints:
    """Of one kind."""

    def __init__(self) -> None:
        self._said_s = float("-inf")
        self._pause_s = 0.0

    def __repr__(self) -> str:
        return f"<Complaints, one each {self._pause_s:g} s>"

    def warn(self, text: str, *args: object) -> None:
        """Log a warning, unless the last one was a moment ago; `text % args` as in `logging`."""
        since_s = time.monotonic() - self._said_s
        if since_s < self._pause_s:
            return
        first_s, longest_s = PAUSE_S
        is_old = since_s > 2 * longest_s
        self._pause_s = first_s if is_old else min(longest_s, 2 * self._pause_s)
        self._said_s = time.monotonic()
        logger.warning(text, *args)
