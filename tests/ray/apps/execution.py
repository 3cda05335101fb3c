"""Handlers of every kind that say when and where they ran, under Serve's flags for that."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from ray import serve

import serve_grpc
from tests.ray.apps.gated import note
from tests.ray.compat.behaviours import over
from tests.ray.waiting import eventually, eventually_async

__all__ = ["FLAGS", "Handlers", "execution_app"]

FLAGS = {
    "threads": {"SERVE_GRPC_HEARTBEAT_INTERVAL_S": "0.1"},
    "in_loop": {
        "RAY_SERVE_RUN_SYNC_IN_THREADPOOL": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    },
    "one_thread": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"},
    "throughput": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}
"""Environment of a replica, by the name of its deployment."""


class Handlers:
    """The `sleep` methods give [start, end, pid], in seconds of the machine's clock."""

    def __init__(self, *others: Any) -> None:
        self.configured_with = [len(others)]
        self.warned: list[str] = []
        warnings.showwarning = lambda message, *_, **__: self.warned.append(str(message))

    async def reconfigure(self, user_config: dict[str, int]) -> None:
        # Serve takes anything here, but then `serve.status()` fails while the application goes.
        self.configured_with.append(user_config["number"])

    async def configuration(self) -> list[int]:
        """Number of the constructor's arguments, and that of each user_config."""
        return self.configured_with

    # ------------------------------------------------------------ when and where

    async def sleep(self, seconds: float) -> list[float]:
        start = time.time()
        await asyncio.sleep(seconds)
        return [start, time.time(), os.getpid()]

    async def sleep_blocking(self, seconds: float) -> list[float]:
        return self.sleep_in_def(seconds)

    def sleep_in_def(self, seconds: float) -> list[float]:
        start = time.time()
        time.sleep(seconds)
        return [start, time.time(), os.getpid()]

    def thread(self) -> list[Any]:
        """Whether a `def` method runs in an event loop's thread, and the warnings so far."""
        return [asyncio._get_running_loop() is not None, self.warned]

    async def replica(self) -> dict[str, Any]:
        context = serve.get_replica_context()
        return {
            "pid": os.getpid(),
            "thread": threading.current_thread() is threading.main_thread(),
            "replica_id": context.replica_id.unique_id,
            "deployment": context.deployment,
        }

    async def request(self) -> dict[str, Any]:
        context = serve.context._get_serve_request_context()
        return {
            "request_id": context.request_id,
            "app_name": context.app_name,
            "route": context.route,
            "model_id": serve.get_multiplexed_model_id(),
            "in_thread": (await asyncio.to_thread(serve.get_multiplexed_model_id)),
        }

    # ------------------------------------------------------------ until the test says so

    async def block(self, path: str) -> int:
        """Holds up its event loop until `Board(path).release()`."""
        note(path, "start", "block", 1)
        eventually(Path(path, "release-all").exists, timeout_s=60)
        return os.getpid()

    async def items(self, path: str, number: int) -> AsyncIterator[int]:
        """The first item at once, the others when the test says so."""
        for i in range(number):
            yield i
            await eventually_async(Path(path, "release-all").exists, timeout_s=60)

    def items_in_def(self, path: str, number: int) -> Iterator[int]:
        for i in range(number):
            yield i
            eventually(Path(path, "release-all").exists, timeout_s=60)

    def where(self, number: int) -> Iterator[bool]:
        for _ in range(number):
            yield asyncio._get_running_loop() is not None

    async def fail(self) -> None:
        raise KeyError("of the handler")

    # ------------------------------------------------------------ as a caller

    async def relay(self, transport: str, handle: Any) -> list[Any]:
        """A call, a call of a `def`, a stream and an error of another deployment."""
        handle = over(transport, handle)
        values = await asyncio.gather(*(handle.sleep_in_def.remote(0) for _ in range(5)))
        stream = handle.options(method_name="where", stream=True).remote(3)
        items = [item async for item in stream]
        try:
            await handle.fail.remote()
        except KeyError as error:
            raised = str(error)
        return [len({pid for _, _, pid in values}), len(items), "of the handler" in raised]

    async def call_and_block(self, transport: str, handle: Any, path: str) -> list[float]:
        """Make a call, hold up this event loop until the test says so, then take the result."""
        handle = over(transport, handle)
        await handle.replica.remote()
        response = handle.sleep.remote(0.01)
        await asyncio.sleep(0)
        await self.block(path)
        answer: list[float] = await response
        return answer

    async def call_while_blocked(
        self, transport: str, handle: Any, path: str, beats_s: float
    ) -> list[int]:
        """Two calls: one that blocks, and one after its replica was silent for `beats_s`."""
        handle = over(transport, handle)
        first = handle.block.remote(path)
        await eventually_async(Path(path, "log").exists)
        await asyncio.sleep(beats_s)  # as long as it takes to take the replica for hung
        return [await response for response in (first, handle.block.remote(path))]


class AsyncHandlers(Handlers):
    """With a constructor that waits."""

    async def __init__(self, *others: Any) -> None:
        await asyncio.sleep(0)
        super().__init__(*others)


OPTIONS: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": 3}


def execution_app() -> serve.Application:
    """A deployment for each of `FLAGS`, and "Pair", two replicas that run two requests each."""
    pair = serve_grpc.deployment(Handlers, **OPTIONS).options(
        name="pair",
        num_replicas=2,
        max_ongoing_requests=2,
        max_queued_requests=20,
        ray_actor_options={"num_cpus": 0.01},
    )
    full = serve_grpc.deployment(AsyncHandlers, **OPTIONS).options(
        name="full",
        max_ongoing_requests=1,
        max_queued_requests=1,
        user_config={"number": 2},
        ray_actor_options={"num_cpus": 0.01},
    )
    bound = {
        name: serve_grpc.deployment(Handlers, **OPTIONS).options(
            name=name,
            max_ongoing_requests=10,
            ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": flags}},
        )
        for name, flags in FLAGS.items()
    }
    first = bound.pop("threads").options(user_config={"number": 1})
    return first.bind(pair.bind(), full.bind("one"), *(other.bind() for other in bound.values()))
