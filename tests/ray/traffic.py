"""Calls that go on, at an even pace, while a test changes something; and what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.ray.waiting import eventually

__all__ = ["Traffic", "traffic"]

CALLERS = 3
PACE_S = 0.02
CALL_TIMEOUT_S = 40


@dataclass
class Traffic:
    """Of one transport, in the order in which calls ended; how long each took that was answered."""

    answers: list[Any] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def wait_for(self, is_new: Callable[[Any], bool], *, timeout_s: float = 40.0) -> None:
        """Wait until the last few answers are all like this, or a call failed."""
        start = len(self.answers)
        recent = 4 * CALLERS

        def has_come() -> bool:
            last = self.answers[start:][-recent:]
            return bool(self.errors) or (len(last) == recent and all(map(is_new, last)))

        eventually(has_come, timeout_s=timeout_s)


@contextlib.contextmanager
def traffic(
    calls: dict[str, Callable[[], Any]], *, callers: int = CALLERS
) -> Iterator[dict[str, Traffic]]:
    """A few callers for each of `calls`, which make one call each, on a loop in a thread."""
    seen = {name: Traffic() for name in calls}
    is_over = threading.Event()

    async def go_on_calling(name: str) -> None:
        while not is_over.is_set():
            begin_s = time.monotonic()
            try:
                answer = await asyncio.wait_for(calls[name](), CALL_TIMEOUT_S)
                seen[name].took_s.append(time.monotonic() - begin_s)
                seen[name].answers.append(answer)
            except Exception as error:
                seen[name].errors.append(repr(error))
            await asyncio.sleep(PACE_S)

    async def main() -> None:
        await asyncio.gather(*(go_on_calling(name) for name in calls for _ in range(callers)))

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="traffic")
    thread.start()
    try:
        for name in calls:
            eventually(lambda name=name: seen[name].answers or seen[name].errors, timeout_s=40)
        yield seen
    finally:
        is_over.set()
        thread.join()
