"""Generators that are arguments of calls, and what became of them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tests.ray.apps.inputs import Refusal
from tests.ray.waiting import eventually

__all__ = ["OPTIONS", "WHO", "Feed", "iter_of", "run", "until_noted"]

OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 1000,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 1,
    "ray_actor_options": {"num_cpus": 0.01},
}
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Feed:
    """Generators of both kinds, and what became of them.

    Attributes:
        made: How many items.
        ends: How each of them ended: "end", or the class of what was raised where it paused.
        places: Threads and context variables that they ran in.
    """

    def __init__(self, number: int = 10**9, item: Any = None, fails: bool = False) -> None:
        self.number, self.item, self.fails = number, item, fails
        self.made = 0
        self.ends: list[str] = []
        self.places: set[tuple[int, str]] = set()

    def _next(self) -> Any:
        self.places.add((threading.get_ident(), WHO.get()))
        self.made += 1
        return self.made - 1 if self.item is None else self.item

    async def on_loop(self) -> AsyncIterator[Any]:
        try:
            for _ in range(self.number):
                await asyncio.sleep(0)
                yield self._next()
            if self.fails:
                raise Refusal("no more")
            self.ends.append("end")
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        finally:
            self.places.add((threading.get_ident(), WHO.get()))

    def in_thread(self) -> Iterator[Any]:
        try:
            for _ in range(self.number):
                yield self._next()
            if self.fails:
                raise Refusal("no more")
            self.ends.append("end")
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        finally:
            self.places.add((threading.get_ident(), WHO.get()))


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def until_noted(reader: Any, key: str, note: str) -> None:
    """Return once the handler has noted this."""

    def is_noted() -> bool:
        return bool(reader.note.remote(key).result(timeout_s=30) == note)

    await asyncio.to_thread(eventually, is_noted)


def iter_of(values: Any) -> Iterator[Any]:
    yield from values
