"""Whether other threads of the process run while some code of C does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

__all__ = ["lets_others_run"]


def lets_others_run(act: Callable[[], object]) -> bool:
    """Call `act`, up to a hundred times, until another thread has run meanwhile.

    Nobody is made to give up the interpreter's lock here, so another thread runs only if `act` lets
    it.
    """
    may_go = threading.Lock()
    seen: list[int] = []

    def wait() -> None:
        with may_go:
            seen.append(1)

    may_go.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(30)
    try:
        may_go.release()
        for _ in range(100):  # the system may be slow to wake it
            act()
            if seen:
                break
        return bool(seen)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
