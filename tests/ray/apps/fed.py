"""Journaled replicas that take streams, and a caller of them in a process of its own.

The items of an upload are "name/0", "name/1", ...; its handler answers with all that it got. In the
notes an upload that has begun to arrive is "reading", and its handler saw one of: "end", "short"
(an end before the last item), "failed" (an error of the stream), "cancelled". "closed" is noted by
its generator, each time that it is left.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import serve_grpc
from serve_grpc.errors import RequestStreamError
from tests.ray.apps.gated import released
from tests.ray.apps.troubled import Troubled, note_timed

__all__ = ["FED", "KINDS", "Fed", "Feed", "upload"]

KINDS = ("loop", "thread")
"""Of generators, and of handlers."""


class Fed(Troubled):
    """Args: `inner`, a handle to another one, which `upload` feeds."""

    async def read(self, path: str, name: str, items: Any, number: int) -> list[Any]:
        """Take all; there should be so many."""
        self._begin(path, name)
        event, taken = "cancelled", []
        try:
            async for item in items:
                self._take(path, name, taken, item)
            event = "end" if len(taken) == number else "short"
        except RequestStreamError:
            event = "failed"
            raise
        finally:
            self._finish(path, name, event)
        return taken

    def read_in_thread(self, path: str, name: str, items: Any, number: int) -> list[Any]:
        """The same in a thread."""
        self._begin(path, name)
        event, taken = "cancelled", []
        try:
            for item in items:
                self._take(path, name, taken, item)
            event = "end" if len(taken) == number else "short"
        except RequestStreamError:
            event = "failed"
            raise
        finally:
            self._finish(path, name, event)
        return taken

    async def hold(self, path: str, name: str, items: Any) -> int:
        """Take nothing until the test lets go, and then all; how many there were."""
        self._begin(path, name)
        event = "cancelled"
        try:
            await released(path, name)
            number = len([item async for item in items])
            event = "end"
        finally:
            self._finish(path, name, event)
        return number

    async def uploads_held(self, path: str, count: int, number: int, size: int, kind: str) -> int:
        """So many uploads at a time to `hold` of the inner deployment; items of them all."""

        async def on_loop(name: str) -> AsyncIterator[bytes]:
            for _ in range(number):
                yield b"x" * size
                note_timed(path, "made", name)

        def in_thread(name: str) -> Iterator[bytes]:
            for _ in range(number):
                yield b"x" * size
                note_timed(path, "made", name)

        items = on_loop if kind == "loop" else in_thread
        names = [f"held{i}" for i in range(count)]
        responses = [self.inner.hold.remote(path, name, items(name)) for name in names]
        return sum([await response for response in responses])

    async def trimmed(self) -> int:
        """This process, whose heap keeps nothing any more that earlier calls have freed."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return os.getpid()

    def _take(self, path: str, name: str, taken: list[Any], item: Any) -> None:
        taken.append(item)
        if len(taken) == 1:
            note_timed(path, "reading", name)

    async def upload(
        self, path: str, name: str, number: int, pause_s: float, of_kind: str, to_kind: str
    ) -> list[Any]:
        """One upload to the inner deployment, of a generator to a handler of these kinds."""
        feed = Feed(name, number, pause_s, lambda: note_timed(path, "closed", name))
        taken: list[Any] = await upload(self.inner, path, feed, of_kind, to_kind)
        return taken


class Feed:
    """The generator of one upload, and what became of it.

    Args:
        name: Of the upload.
        number: Of its items.
        pause_s: Before each of them.
        closed: Called where the generator is left.

    Attributes:
        made: How many of its items it was asked for.
        ends: Each time that it was left: the thread.
        steps: The generator; None before `generator`.
    """

    def __init__(
        self, name: str, number: int, pause_s: float, closed: Callable[[], None] | None = None
    ) -> None:
        self.name, self.number, self.pause_s = name, number, pause_s
        self.made = 0
        self.ends: list[int] = []
        self.steps: Any = None
        self._closed = closed

    def generator(self, kind: str) -> Any:
        """It, of a kind of `KINDS`."""
        self.steps = self._on_loop() if kind == "loop" else self._in_thread()
        return self.steps

    @property
    def is_over(self) -> bool:
        """Whether the generator can take no more steps, also if it never took one."""
        is_async = inspect.isasyncgen(self.steps)
        return (self.steps.ag_frame if is_async else self.steps.gi_frame) is None

    async def _on_loop(self) -> AsyncIterator[str]:
        try:
            for i in range(self.number):
                await asyncio.sleep(self.pause_s)
                self.made += 1
                yield f"{self.name}/{i}"
        finally:
            self._left()

    def _in_thread(self) -> Iterator[str]:
        try:
            for i in range(self.number):
                time.sleep(self.pause_s)
                self.made += 1
                yield f"{self.name}/{i}"
        finally:
            self._left()

    def _left(self) -> None:
        self.ends.append(threading.get_ident())
        if self._closed is not None:
            self._closed()


def upload(handle: Any, path: str, feed: Feed, of_kind: str, to_kind: str) -> Any:
    """A call of `Fed.read`, or its like in a thread, with the feed; returns the response."""
    read = handle.read if to_kind == "loop" else handle.read_in_thread
    return read.remote(path, feed.name, feed.generator(of_kind), feed.number)


FED = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=20,
    health_check_period_s=0.5,
    max_ongoing_requests=100,
)(Fed)
"""To be run with `.options(num_replicas=..., ...)`."""
