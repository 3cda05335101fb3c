"""Threads of our own, for work of ours that takes too long for an event loop.

A loop's default executor, anyio's threads and Serve's belong to the user's code: what we would put
there waits until that code is done. Ours run nothing that waits for another call.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["THREAD_NAME", "in_thread"]

T = TypeVar("T")

THREAD_NAME = "serve_grpc-worker"
MAX_THREADS = 8
"""They copy large payloads and import the modules of what arrives. Started when first needed."""

_pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=THREAD_NAME)


def in_thread(function: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """Run `function(*args)` in a thread, in the context of the caller; a future of this loop."""
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_pool, contextvars.copy_context().run, function, *args)
