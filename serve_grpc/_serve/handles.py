"""Small things a handle needs of Serve: its default marker, flags, and the count of its calls."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from ray.serve._private.constants import RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP
from ray.serve._private.utils import DEFAULT

__all__ = ["DEFAULT", "RUN_ROUTER_IN_SEPARATE_LOOP", "count_handle_call"]

RUN_ROUTER_IN_SEPARATE_LOOP: bool = RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP

FLUSH_S = 0.1
"""As often as Serve exports its cached metrics."""

_counts: Counter[tuple[Any, str, str]] = Counter()
_lock = threading.Lock()
_flusher: threading.Timer | None = None


def count_handle_call(counter: Any, route: str, app_name: str) -> None:
    """Add one to Serve's `serve_handle_request_counter`; from any thread.

    One increment of a Ray metric costs more than sending a small call, so they are summed up and
    added ten times a second, as Serve does with the metrics of its router.
    """
    global _flusher
    with _lock:
        _counts[counter, route, app_name] += 1
        if _flusher is None:
            _flusher = threading.Timer(FLUSH_S, _flush)
            _flusher.daemon = True
            _flusher.start()


def _flush() -> None:
    global _flusher
    with _lock:
        counts = dict(_counts)
        _counts.clear()
        _flusher = None
    for (counter, route, app_name), number in counts.items():
        counter.inc(number, tags={"route": route, "application": app_name})
