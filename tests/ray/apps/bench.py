"""The workbench: one deployment with a method for each thing a test wants a replica to do.

`hold` and the endless streams write down what becomes of them, so that a test can wait until a
call runs, was cancelled, or is over. `watch` reads the notes; tests call it by reference.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray
from ray import serve

import serve_grpc
from serve_grpc.deadlines import current_deadline_s, remaining_ms
from tests.ray.apps.failures import raise_kind
from tests.ray.carriers import options_over

__all__ = ["OPTIONS", "Workbench", "bench_app"]


class Unserializable:
    """No serializer takes it."""

    def __reduce__(self) -> Any:
        raise TypeError("never pickled")


class Workbench:
    """Args: `inner`, a handle to another workbench, for nested calls."""

    def __init__(self, inner: Any = None) -> None:
        self.native_inner = inner
        self.inner = inner.options(_by_reference=False) if inner is not None else None
        self.notes: dict[str, str] = defaultdict(lambda: "unknown")
        self.produced: dict[str, int] = defaultdict(int)
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.running = self.most_running = self.calls = 0

    # ------------------------------------------------------------ plain calls

    async def __call__(self, value: Any = None) -> Any:
        return value

    async def arguments(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    async def kind_of(self, value: Any) -> str:
        return type(value).__name__

    async def pid(self) -> int:
        return os.getpid()

    async def payload(self, size: int) -> bytes:
        return b"x" * size

    async def length(self, payload: bytes) -> int:
        return len(payload)

    async def unserializable(self) -> Any:
        return Unserializable()

    async def fail(self, kind: str) -> None:
        raise_kind(kind)

    def fail_in_thread(self, kind: str) -> None:
        raise_kind(kind)

    # ------------------------------------------------------------ streams

    async def items(self, number: int, size: int = 0) -> AsyncIterator[Any]:
        for i in range(number):
            yield b"x" * size if size else i

    async def each(self, values: list[Any]) -> AsyncIterator[Any]:
        for value in values:
            yield value

    def items_in_thread(self, number: int) -> Iterator[int]:
        yield from range(number)

    async def fail_after(self, number: int, kind: str) -> AsyncIterator[int]:
        for i in range(number):
            yield i
        raise_kind(kind)

    async def endless(self, key: str, size: int) -> AsyncIterator[bytes]:
        self.notes[key] = "running"
        try:
            while True:
                self.produced[key] += 1
                yield b"x" * size
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.notes[key] = "cancelled"
            raise
        finally:
            if self.notes[key] == "running":
                self.notes[key] = "closed"

    def endless_in_thread(self, key: str, size: int) -> Iterator[bytes]:
        self.notes[key] = "running"
        try:
            while True:
                self.produced[key] += 1
                yield b"x" * size
        finally:
            self.notes[key] = "closed"

    async def hold_stream(self, key: str, before: int) -> AsyncIterator[int]:
        for i in range(before):
            yield i
        await self.hold(key)

    # ------------------------------------------------------------ calls that last

    async def hold(self, key: str) -> str:
        """Runs until `release(key)`."""
        self.running += 1
        self.calls += 1
        self.most_running = max(self.most_running, self.running)
        self.notes[key] = "running"
        try:
            await self.gates[key].wait()
        except asyncio.CancelledError:
            self.notes[key] = "cancelled"
            raise
        finally:
            self.running -= 1
        self.notes[key] = "finished"
        return key

    async def release(self, key: str) -> None:
        self.gates[key].set()

    async def watch(self, key: str = "") -> dict[str, Any]:
        return {
            "note": self.notes[key],
            "produced": self.produced[key],
            "running": self.running,
            "most_running": self.most_running,
            "calls": self.calls,
        }

    async def reset(self) -> None:
        self.most_running = self.running
        self.calls = 0

    # ------------------------------------------------------------ nested calls

    async def call_inner(self, method: str, *args: Any) -> Any:
        return await self.inner.options(method_name=method).remote(*args)

    async def list_inner(self, method: str, *args: Any) -> list[Any]:
        stream = self.inner.options(method_name=method, stream=True).remote(*args)
        return [item async for item in stream]

    async def call_handle(self, handle: Any, *args: Any) -> Any:
        return [type(handle).__module__, await handle.remote(*args)]

    # ------------------------------------------------------------ about the request

    async def request(self) -> dict[str, Any]:
        context = serve.context._get_serve_request_context()
        return {
            "request_id": context.request_id,
            "route": context.route,
            "app_name": context.app_name,
            "model_id": serve.get_multiplexed_model_id(),
            "session_id": context.session_id,
            "is_http": context.is_http_request,
        }

    async def deadline_left_ms(self) -> int | None:
        deadline_s = current_deadline_s()
        return None if deadline_s is None else remaining_ms(deadline_s)

    async def requests(self) -> list[Any]:
        """This request's id and that of a call it makes."""
        mine = await self.request()
        return [mine["request_id"], (await self.inner.request.remote())["request_id"]]

    async def replica(self) -> dict[str, Any]:
        """Facts of this replica that only it knows."""
        import logging

        from serve_grpc._serve.replicas import current_replica

        adapter = current_replica()
        files = [
            getattr(handler, "target", handler)
            for handler in logging.getLogger("ray.serve").handlers
        ]
        return {
            "replica_id": adapter.replica_id,
            "ongoing": adapter.ongoing(),
            "log_file": next(f.baseFilename for f in files if hasattr(f, "baseFilename")),
            "actor_id": ray.get_runtime_context().get_actor_id(),
            "pid": os.getpid(),
        }


OPTIONS = {
    "max_ongoing_requests": 200,
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}


def bench_app(carrier: str = "local") -> serve.Application:
    """A workbench that calls another one; both are called over this carrier."""
    enabled = serve_grpc.deployment(**options_over(carrier, OPTIONS))(Workbench)
    return enabled.options(name="Outer").bind(enabled.options(name="Inner").bind())
