"""Long work on an event loop, a millisecond at a time, so that calls get their turns between.

Work is a generator: it stops only where it yields. Invariant: what was given first is done first,
and nothing of a later piece of work is done before the end of those before it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator

from serve_grpc.config import LOGGER_NAME
from serve_grpc.mailbox import Mailbox

__all__ = ["Paced"]

logger = logging.getLogger(LOGGER_NAME)

SLICE_S = 0.001
"""How long the loop is kept at a time: about as long as a call takes that waits meanwhile."""


class Paced:
    """Does work in order, on the loop of `mailbox`. All of it is for that loop.

    Args:
        mailbox: How the rest comes back to the loop.
        doing: What it is all for, for the log if a piece fails; the others are done all the same.
    """

    def __init__(self, mailbox: Mailbox, doing: str) -> None:
        self._mailbox = mailbox
        self._doing = doing
        self._works: deque[Iterator[None]] = deque()
        self._is_busy = False

    def __repr__(self) -> str:
        return f"<Paced {self._doing!r}: {len(self._works)} to do>"

    @property
    def is_idle(self) -> bool:
        """Whether all that was given is done."""
        return not self._works

    def run(self, work: Iterator[None]) -> None:
        """Begin now, unless other work is not done; what takes longer goes on in later turns."""
        self._works.append(work)
        if not self._is_busy:
            self._mailbox.enter(self._go_on)

    def _go_on(self) -> None:
        self._is_busy = True
        end_s = time.monotonic() + SLICE_S
        while self._works:
            if not self._is_done(self._works[0], end_s):
                self._mailbox.post(self._go_on)
                return
            self._works.popleft()
        self._is_busy = False

    def _is_done(self, work: Iterator[None], end_s: float) -> bool:
        try:
            for _ in work:
                if time.monotonic() >= end_s:
                    return False
        except Exception:
            logger.exception("could not go on to %s", self._doing)
        return True
