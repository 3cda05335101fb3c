"""The deadline that a request's own calls inherit.

Times are of `time.monotonic` in this process; between processes a deadline travels as the time
that is left.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

__all__ = ["current_deadline_s", "deadline_after", "remaining_ms", "set_current_deadline"]

_current: ContextVar[float | None] = ContextVar("serve_grpc deadline", default=None)


def current_deadline_s() -> float | None:
    """When the request that this code runs for must be over, None if it has no deadline."""
    return _current.get()


def set_current_deadline(deadline_s: float | None) -> None:
    """Set it for the context this code runs in."""
    _current.set(deadline_s)


def deadline_after(timeout_s: float | None) -> float | None:
    """The deadline of a call made now: its own or the inherited one, whichever is first."""
    inherited = _current.get()
    if timeout_s is None:
        return inherited
    own = time.monotonic() + timeout_s
    return own if inherited is None else min(own, inherited)


def remaining_ms(deadline_s: float) -> int:
    """Whole milliseconds left, at least 1 while any time is left, 0 or less when it has passed."""
    # 0 says "no deadline" on the wire, so a rest of less than a millisecond counts as one.
    left = deadline_s - time.monotonic()
    return max(1, int(left * 1000)) if left > 0 else 0
