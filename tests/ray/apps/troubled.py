"""Journaled replicas that a test puts in trouble, one by one.

What a replica does with its calls is decided by files beside the notes, named "mood-PID": it fails
at once, takes ten times as long, or dies of them. Its notes carry a time, of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import serve_grpc
from serve_grpc.errors import ReplicaDiedError
from tests.ray.apps.failures import raise_kind
from tests.ray.apps.gated import Board, released
from tests.ray.apps.journaled import Journaled

__all__ = [
    "ALL",
    "DIES",
    "FAILS",
    "SLOW",
    "TROUBLED",
    "Troubled",
    "give_mood",
    "note_timed",
    "times",
]

DIES, FAILS, SLOW = "dies", "fails", "slow"
ALL = "all"
SLOWER = 10


def give_mood(board: Board, mood: str, pid: int | str) -> None:
    """The test's side: from now on this replica, or all, behave like this."""
    Path(board.path, f"{mood}-{pid}").touch()


def _is_in(mood: str, path: str) -> bool:
    return any(os.path.exists(f"{path}/{mood}-{pid}") for pid in (os.getpid(), ALL))


def times(board: Board, event: str) -> dict[str, float]:
    """When it last happened to each call, by its name."""
    return {line[1]: float(line[4]) for line in board.lines(event)}


def note_timed(path: str, event: str, name: str, running: int = 0) -> None:
    """As `note`, with the time, which `times` reads."""
    with open(f"{path}/log", "a") as file:
        file.write(f"{event} {name} {os.getpid()} {running} {time.monotonic()}\n")


class Troubled(Journaled):
    """Args: `inner`, a handle that `through`, `beside` and `fill` call in turn."""

    def _begin(self, path: str, name: str) -> None:
        self.running += 1
        note_timed(path, "start", name, self.running)

    def _finish(self, path: str, name: str, event: str) -> None:
        self.running -= 1
        note_timed(path, event, name, self.running)

    async def moody(self, path: str, name: str, work_s: float = 0.0) -> str:
        """As `__call__`, as far as the replica's mood allows."""
        if _is_in(DIES, path):
            self._begin(path, name)
            await asyncio.sleep(work_s)
            os.kill(os.getpid(), signal.SIGKILL)
        if _is_in(FAILS, path):
            self._begin(path, name)
            self._finish(path, name, "end")
            raise ValueError(name)
        return await self(path, name, work_s * (SLOWER if _is_in(SLOW, path) else 1))

    async def held(self, path: str, name: str, blocked_s: float = 0.0) -> None:
        """Hold the loop for a while, then stay until the test lets this replica's calls go."""
        note_timed(path, "held", name)
        time.sleep(blocked_s)  # noqa: ASYNC251
        await released(path, str(os.getpid()))

    async def fill(self, path: str, calls: int, blocked_s: float = 0.0) -> None:
        """Call `held` of the inner deployment so many times; wait for all."""
        responses = [self.inner.held.remote(path, f"held{i}", blocked_s) for i in range(calls)]
        for response in responses:
            await response

    async def beside(self, path: str, name: str, work_s: float) -> str:
        """Call the inner deployment and never wait for it, while working here."""
        response = self.inner.remote(path, name, work_s)
        self._begin(path, f"outer-{name}")
        event = "cancelled"
        try:
            await asyncio.sleep(work_s)
            event = "end"
        finally:
            self._finish(path, f"outer-{name}", event)
        return str(response.request_id)

    async def fail(self, kind: str) -> None:
        """Raise the exception of this name."""
        raise_kind(kind)

    def fail_in_thread(self, kind: str) -> None:
        """The same in a `def` method."""
        raise_kind(kind)

    async def fail_in_stream(self, kind: str) -> Any:
        """The same, after an item."""
        yield 0
        raise_kind(kind)

    async def fail_at(self, place: int, kind: str) -> None:
        """As `fail`, for a request router that places by the first argument."""
        raise_kind(kind)

    async def fail_with_lost(self, place: int, path: str, name: str) -> None:
        """End with the error of a call of its own that did not start."""
        self._begin(path, name)
        self._finish(path, name, "end")
        raise ReplicaDiedError("lost", request_id="another call's", may_have_executed=False)

    async def inner_expires(self, timeout_s: float) -> str:
        """The error of an inner call whose deadline passes before it is sent."""
        answer: str = await self.inner.options(timeout_s=timeout_s).remote("", "never")
        return answer


TROUBLED = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=20,
    health_check_period_s=0.5,
    max_ongoing_requests=500,
)(Troubled)
"""To be run with `.options(num_replicas=..., ...)`."""
