"""Notices that the process at the other end was stopped, as gRPC's keepalive does between nodes.

The kernel is asked, not the process: one that only hangs still runs, and its calls go on. Where the
kernel does not show the process (another process namespace), nothing is noticed. One look at a
process is for all links to it, and all processes have theirs together: a look reads a file.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

__all__ = ["StandstillWatch", "is_stopped"]

LOOK_S = 4.0
"""Stopped at two looks, a process counts as lost: after 4 to 8 seconds, as with keepalive."""


class StandstillWatch:
    """Watches on the running loop until `close`.

    Args:
        process: Id of the other process; 0 if it is not known.
        on_standstill: Called once, when it has been stopped for a while.
    """

    __slots__ = ("__weakref__", "_looks", "on_standstill", "process")

    def __init__(self, process: int, on_standstill: Callable[[], None]) -> None:
        self.process = process
        self.on_standstill = on_standstill
        self._looks = _looks_of(asyncio.get_running_loop()) if process else None
        if self._looks is not None:
            self._looks.add(self)

    def __repr__(self) -> str:
        return f"<StandstillWatch of {self.process}>"

    def close(self) -> None:
        """Look no more."""
        if self._looks is not None:
            self._looks.remove(self)
            self._looks = None


class _Looks:
    """What is watched on one loop."""

    def __init__(self) -> None:
        # Weakly, for links know their loop, which would live on in the table of loops.
        self._watches: weakref.WeakSet[StandstillWatch] = weakref.WeakSet()
        self._stopped: set[int] = set()  # at the last look
        self._is_due = False

    def add(self, watch: StandstillWatch) -> None:
        self._watches.add(watch)
        self._look_later()

    def remove(self, watch: StandstillWatch) -> None:
        self._watches.discard(watch)

    def _look_later(self) -> None:
        # There is no handle to cancel it by, which would keep the loop: it ends by itself.
        if not self._is_due and self._watches:
            self._is_due = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._is_due = False
        processes = {watch.process for watch in self._watches}
        # At the first look it may have been stopped a moment ago, by a shell's job control say.
        before, self._stopped = self._stopped, {p for p in processes if is_stopped(p)}
        self._look_later()
        for watch in tuple(self._watches):
            if watch.process in before & self._stopped:
                watch.close()  # once
                watch.on_standstill()


_all: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Looks] = weakref.WeakKeyDictionary()


def _looks_of(loop: asyncio.AbstractEventLoop) -> _Looks:
    looks = _all.get(loop)
    if looks is None:
        looks = _all[loop] = _Looks()
    return looks


def is_stopped(process: int) -> bool:
    """Whether the kernel shows the process as stopped by a signal."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return False  # it is gone, which its socket tells, or hidden from us
    # "id (name) state …", and the name may have anything in it.
    return stat.rpartition(b")")[2].lstrip().startswith(b"T")
