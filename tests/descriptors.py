"""What descriptors this process has open, for tests that look for what is left."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

from tests.ray.waiting import eventually

__all__ = ["nothing_left_open", "open_files"]

POLLERS = "anon_inode:"
"""Of event loops, each of which has sockets as well, and of gRPC, which makes its own anew when
this process forks."""


def open_files() -> set[tuple[int, str]]:
    """Each descriptor and what it is; of a socket or pipe, which one. Without pollers."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of this very listing
            what = os.readlink(f"/proc/self/fd/{name}")
            if not what.startswith(POLLERS):
                found.add((int(name), what))
    return found


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """What is opened inside is closed again.

    Threads of gRPC and Ray, and what other tests left to the collector, open and close descriptors
    meanwhile: so what was there before may go, and what is new has a moment.
    """
    gc.collect()
    before = open_files()
    yield
    gc.collect()
    try:
        eventually(lambda: not open_files() - before, timeout_s=5)
    except AssertionError as error:
        raise AssertionError(f"left open: {open_files() - before}") from error
