"""The replicas of a deployment, as a test sees them: their processes, and whether they answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import serve_grpc
from tests.ray.waiting import eventually

__all__ = ["pids_of", "stopped", "wait_for_replicas"]


def pids_of(handle: Any) -> set[int]:
    """One of each replica that Serve lists; all of them answer."""
    answers = handle.broadcast("pid").results(timeout_s=20, return_exceptions=True)
    return {pid for pid in answers if isinstance(pid, int)}


def wait_for_replicas(
    handle: Any, number: int, *, without: frozenset[int] = frozenset()
) -> set[int]:
    """Return the processes once so many replicas answer and their sessions are open.

    Args:
        handle: Of the deployment.
        number: How many there must be, all told.
        without: Processes that must be gone.
    """

    def answering() -> set[int] | None:
        handle.pid.remote().result(timeout_s=30)
        pids = pids_of(handle)
        states = [replica.state for replica in serve_grpc.handle_statistics(handle).replicas]
        is_complete = len(pids) == number and not pids & without
        return pids if is_complete and states == ["ready"] * number else None

    return eventually(answering, timeout_s=60)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run until the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
