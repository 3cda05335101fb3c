"""Deployments that call the next one, over the transport that each request names.

An ingress of `ingress.py` comes first. What lasts is noted at every link of the chain under the
test's key, so that a test sees who ran and who was cancelled; tests read the notes by reference.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray import serve

import serve_grpc
from tests.ray.apps.failures import raise_kind
from tests.ray.compat.behaviours import BY_REFERENCE, over

__all__ = ["OPTIONS", "Link", "Narrow", "inner_links"]

OPTIONS = {
    "max_ongoing_requests": 300,
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}


class Link:
    """Does what it is asked, if it is the last link; else asks the next one.

    Args:
        following: Handle to the next link.
        narrow: Handle to a `Narrow`.
    """

    def __init__(self, following: Any = None, narrow: Any = None) -> None:
        self._handles = {"following": following, "narrow": narrow}
        self._over: dict[tuple[str, str], Any] = {}
        self._is_last = following is None
        self.notes: dict[str, str] = defaultdict(lambda: "unknown")
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.produced: Counter[str] = Counter()

    def following(self, transport: str, which: str = "following") -> Any:
        """The next link, called over `transport`."""
        handle = self._over.get((transport, which))
        if handle is None:
            handle = self._over[transport, which] = over(transport, self._handles[which])
        return handle

    @contextlib.contextmanager
    def noted(self, key: str) -> Iterator[None]:
        """Note how the block ends: "finished", or the name of what was raised in it."""
        self.notes[key] = "running"
        try:
            yield
        except BaseException as error:
            self.notes[key] = type(error).__name__
            raise
        self.notes[key] = "finished"

    async def watch(self, key: str) -> tuple[str, int]:
        """The note, and how many items were made."""
        return self.notes[key], self.produced[key]

    async def release(self, key: str) -> None:
        """Let go what waits at this link."""
        self.gates[key].set()

    # ------------------------------------------------------------ what links do

    async def echo(self, transport: str, value: Any) -> Any:
        """Gives the value back."""
        return (
            value
            if self._is_last
            else await self.following(transport).echo.remote(transport, value)
        )

    async def hold(self, transport: str, key: str) -> str:
        """Runs until the last link is released."""
        with self.noted(key):
            if self._is_last:
                await self.gates[key].wait()
            else:
                await self.following(transport).hold.remote(transport, key)
        return key

    async def numbers(
        self, transport: str, key: str, number: int, at_once: int
    ) -> AsyncIterator[int]:
        """Counts; the last link pauses after `at_once` numbers until it is released."""
        with self.noted(key):
            if self._is_last:
                for i in range(number):
                    if i == at_once:
                        await self.gates[key].wait()
                    self.produced[key] += 1
                    yield i
            else:
                handle = self.following(transport).options(method_name="numbers", stream=True)
                async for i in handle.remote(transport, key, number, at_once):
                    yield i

    async def fail(self, transport: str, kind: str) -> None:
        """Raises."""
        if self._is_last:
            raise_kind(kind)
        await self.following(transport).fail.remote(transport, kind)

    async def squeeze(self, transport: str, key: str, is_direct: bool) -> str:
        """Calls the narrow deployment: here, or from the next link."""
        if is_direct:
            return await self.following(transport, "narrow").remote(key)
        return await self.following(transport).squeeze.remote(transport, key, True)

    async def request(self, transport: str) -> list[dict[str, Any]]:
        """What this link and those after it know of the request; ids are passed on as options."""
        context = serve.context._get_serve_request_context()
        grpc_context = context.grpc_context
        mine = {
            "request_id": context.request_id,
            "model": serve.get_multiplexed_model_id(),
            "session": context.session_id,
            "metadata": dict(grpc_context.invocation_metadata()) if grpc_context else {},
        }
        if self._is_last:
            return [mine]
        handle = self.following(transport).options(
            method_name="request", multiplexed_model_id=mine["model"], session_id=mine["session"]
        )
        return [mine, *await handle.remote(transport)]


class Narrow:
    """One call runs, one waits, the others are refused. Args: `back`, a link to hold calls at."""

    def __init__(self, back: Any) -> None:
        self.back = back

    async def __call__(self, key: str) -> str:
        return await self.back.hold.remote(BY_REFERENCE, key)


def inner_links() -> tuple[serve.Application, serve.Application]:
    """The chain after the ingress, and the narrow deployment."""
    link = serve_grpc.deployment(**OPTIONS)(Link)
    back = link.options(name="Back").bind()
    options = {**OPTIONS, "max_ongoing_requests": 1, "max_queued_requests": 1}
    narrow = serve_grpc.deployment(**options)(Narrow).bind(back)
    return link.options(name="Middle").bind(back, narrow), narrow
