"""Memory of processes, looked at while a test does something to them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psutil

__all__ = ["MIB", "Growth", "watched_memory"]

MIB = 1024 * 1024
LOOK_S = 0.05


class Growth:
    """How much more than at the beginning each process held, at most, in MiB."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._first = [process.memory_info().rss for process in self._processes]
        self._most = list(self._first)

    def look(self) -> None:
        """Note what they hold now."""
        for i, process in enumerate(self._processes):
            self._most[i] = max(self._most[i], process.memory_info().rss)

    @property
    def each_mib(self) -> list[float]:
        """Of each process, in the order given."""
        return [(most - first) / MIB for first, most in zip(self._first, self._most, strict=True)]

    @property
    def most_mib(self) -> float:
        """Of the process that grew most."""
        return max(self.each_mib)


@contextlib.contextmanager
def watched_memory(*pids: int) -> Iterator[Growth]:
    """Look at these processes again and again."""
    growth = Growth(pids)
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(LOOK_S):
            growth.look()

    thread = threading.Thread(target=go_on, name="memory")
    thread.start()
    try:
        yield growth
    finally:
        is_over.set()
        thread.join()
