"""Child processes of a measurement: started, spoken with, and looked at from outside.

A process is looked at by the kernel's count, so that nothing runs in it while it is to be idle.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import psutil

__all__ = ["PATIENCE_S", "Child", "Usage", "child"]

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Usage:
    """What a process uses.

    Attributes:
        cpu_s: CPU time since its start, user and system.
        rss_kib: Resident memory.
        private_kib: What of it no other process shares.
    """

    cpu_s: float
    rss_kib: float
    private_kib: float


class Child:
    """A child process, and the pipe to it."""

    def __init__(self, process: Any, pipe: Pipe) -> None:
        self._process = process
        self._pipe = pipe

    def usage(self) -> Usage:
        """What it uses now."""
        process = psutil.Process(self._process.pid)
        times, memory = process.cpu_times(), process.memory_full_info()
        return Usage(times.user + times.system, memory.rss / 1024, memory.uss / 1024)

    def tell(self, message: Any) -> None:
        """Send it something."""
        self._pipe.send(message)

    def answer(self) -> Any:
        """What it says next.

        Raises:
            TimeoutError: It says nothing.
            RuntimeError: It ended; its traceback is on stderr.
        """
        if not self._pipe.poll(PATIENCE_S):
            raise TimeoutError(f"no answer of a measuring process within {PATIENCE_S} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("a measuring process ended early; see its traceback") from None

    def ask(self, message: Any) -> Any:
        """Send it something, and return what it answers."""
        self.tell(message)
        return self.answer()

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def close(self) -> None:
        """It ends when it finds nobody at the other end of its pipe."""
        self._pipe.close()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self.kill()


@contextlib.contextmanager
def child(target: Callable[..., None], *args: Any) -> Iterator[Child]:
    """Run `target(pipe, *args)` in a fresh process for as long as the context."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    one = Child(process, ours)
    try:
        yield one
    finally:
        one.close()
