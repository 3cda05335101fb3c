"""Threads of our own, for work of ours that takes too long for an event loop.

A loop's default executor, anyio's threads and Serve's belong to the user's code: what we would put
there waits until that code is done. Ours run nothing that waits for another call.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["THREAD_NAME", "in_thread", "in_waiting_thread"]

T = TypeVar("T")

THREAD_NAME = "serve_grpc-worker"
MAX_THREADS = 8
"""They copy large payloads and import the modules of what arrives. Started when first needed."""

# Not closed by us: Python joins its threads at exit, and calls may run until then.
_pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=THREAD_NAME)


def in_thread(function: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """Run `function(*args)` in a thread, in the context of the caller; a future of this loop."""
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_pool, contextvars.copy_context().run, function, *args)


class _WaitingThreads:
    """Threads that may wait for another process. Started when needed, and kept.

    They are daemons, unlike those of an executor: a program ends whatever they wait for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        """Run it in one of them, which it must not end by what it raises."""
        self._work.put(work)
        if self._idle.acquire(blocking=False):
            return  # that one takes it, or one that is free by then
        with self._lock:
            if self._started == self._most:
                return
            self._started += 1
            name = f"{THREAD_NAME}-waits-{self._started}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()
            self._idle.release()


_waiting = _WaitingThreads(32)
"""They put payloads into Ray's object store, and fetch them from there."""


def in_waiting_thread(function: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """As `in_thread`, for what may wait for another process: no work of ours waits behind it."""
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    _waiting.submit(work)
    return asyncio.wrap_future(future)
