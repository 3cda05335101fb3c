"""Notices that the process at the other end was stopped, as gRPC's keepalive does between nodes.

The kernel is asked, not the process: one that only hangs still runs, and its calls go on. Where the
kernel does not show the process (another process namespace), nothing is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["StandstillWatch", "is_stopped"]

LOOK_S = 4.0
"""Stopped at two looks, a process counts as lost: after 4 to 8 seconds, as with keepalive."""


class StandstillWatch:
    """Runs on the running loop until `close`.

    Args:
        process: Id of the other process; 0 if it is not known.
        on_standstill: Called once, when it has been stopped for a while.
    """

    def __init__(self, process: int, on_standstill: Callable[[], None]) -> None:
        self._process = process
        self._on_standstill = on_standstill
        self._was_stopped = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LOOK_S, self._look) if process else None

    def __repr__(self) -> str:
        return f"<StandstillWatch of {self._process}{', stopped' if self._was_stopped else ''}>"

    def _look(self) -> None:
        # At the first look it may have been stopped a moment ago, by a shell's job control say.
        before, self._was_stopped = self._was_stopped, is_stopped(self._process)
        if before and self._was_stopped:
            self._timer = None
            self._on_standstill()
        else:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_stopped(process: int) -> bool:
    """Whether the kernel shows the process as stopped by a signal."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return False  # it is gone, which its socket tells, or hidden from us
    # "id (name) state …", and the name may have anything in it.
    return stat.rpartition(b")")[2].lstrip().startswith(b"T")
