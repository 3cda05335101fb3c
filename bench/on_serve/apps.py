"""The applications under measurement: a callee that does next to nothing, and the caller replica.

Both are ordinary Serve deployments and are there once for each side, see `sides.py`; for serve_grpc
the callee is opted in. The load runs on the loop that Serve gives the caller's code. Adapter log,
metrics and accounting are as Serve has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import ray
from ray.serve.handle import DeploymentHandle

from bench.load.closed_loop import Recorder, run_in_loop
from bench.load.payloads import Kind, checker, make, size_of
from bench.load.window import Counted, Window
from bench.on_serve.memory import Memory, watched_calls
from bench.on_serve.sides import CarrierWatch, Replica, check_own_side, new_handle
from bench.plan.contenders import parse

__all__ = ["Callee", "Caller", "Job", "Large", "WindowFailed", "describe", "handle_for"]

TOKEN = "token"
LARGE_S = 20.0  # bound of the last large call


class Callee(Replica):
    """What is called."""

    async def echo(self, value: Any) -> Any:
        """There and back."""
        return value

    async def changed(self, value: Any) -> Any:
        """There, and a new array back."""
        return value + 1

    async def length(self, value: Any) -> int:
        """There only."""
        return size_of(value)

    async def tokens(self, number: int) -> AsyncIterator[str]:
        """A stream, produced on the loop."""
        for _ in range(number):
            yield TOKEN

    def tokens_in_thread(self, number: int) -> Iterator[str]:
        """A stream of a plain generator."""
        for _ in range(number):
            yield TOKEN


@dataclass(frozen=True)
class Large:
    """Calls that are made beside those of a window, one at a time. See `Job`."""

    method: str
    kind: Kind
    size: int


@dataclass(frozen=True)
class Job:
    """One window for a caller.

    Attributes:
        contender: Over what.
        app: Application whose `Callee` is called.
        method: Which of its methods.
        kind, size: Of the value that is sent; `size` is the number of items for streams.
        window: How long.
        callee_pids: Whose CPU time is counted.
        large: What is under way beside.
    """

    contender: str
    app: str
    method: str
    kind: Kind
    size: int
    window: Window
    callee_pids: tuple[int, ...]
    large: Large | None = None


class WindowFailed(Exception):
    """Why a window has no numbers, in one line."""


class Caller:
    """Makes the load, one window at a time."""

    async def loop_module(self) -> str:
        """Where the class of the event loop comes from, as "uvloop"."""
        return type(asyncio.get_running_loop()).__module__

    async def measure(self, job: Job) -> Counted | WindowFailed:
        """Run one window. What goes wrong in a call is returned, not raised."""
        handle = handle_for(job.contender, job.app, job.method)
        call = _stream_call(handle, job) if is_stream(job.method) else _unary_call(handle, job)
        watch = CarrierWatch(handle)
        try:
            check_own_side(parse(job.contender).side)
            if job.large is None:
                counted = await run_in_loop(call, job.window, job.callee_pids)
            else:
                counted = await _run_beside(job, job.large, call)
            return replace(counted, carrier=watch.seen())
        except Exception as error:
            return WindowFailed(describe(error))

    async def measure_memory(self, job: Job, count: int, idle_s: float) -> Memory | WindowFailed:
        """Make `count` calls, and look at the memory of both sides."""
        handle = handle_for(job.contender, job.app, job.method)
        call = _unary_call(handle, job)
        connect = _unary_call(handle, replace(job, size=0))
        watch = CarrierWatch(handle)
        try:
            check_own_side(parse(job.contender).side)
            await connect(Recorder())
            pids = (os.getpid(), *job.callee_pids)
            found = await watched_calls(lambda: call(Recorder()), count, idle_s, pids)
            return replace(found, carrier=watch.seen())
        except Exception as error:
            return WindowFailed(describe(error))


async def _run_beside(
    job: Job, large: Large, call: Callable[[Recorder], Awaitable[None]]
) -> Counted:
    """A window while large calls are under way from its beginning to its end."""
    handle = handle_for(job.contender, job.app, large.method)
    make_large = _unary_call(
        handle, replace(job, method=large.method, kind=large.kind, size=large.size)
    )
    ended, is_over = 0, False

    async def go_on() -> None:
        nonlocal ended
        while not is_over:
            await make_large(Recorder())
            ended += 1

    task = asyncio.create_task(go_on())
    begin = time.monotonic()
    try:
        counted = await run_in_loop(call, job.window, job.callee_pids)
        is_over = True
        await asyncio.wait_for(task, LARGE_S)  # what it leaves behind would slow down the next
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return replace(counted, large_per_s=ended / (time.monotonic() - begin))


@functools.cache
def handle_for(contender: str, app: str, method: str) -> DeploymentHandle:
    """This process's one handle to a method of the callee over a contender."""
    handle = new_handle(parse(contender), "Callee", app)
    return handle.options(method_name=method, stream=is_stream(method))


def is_stream(method: str) -> bool:
    """Whether a method of the callee is a generator."""
    return method.startswith("tokens")


def _unary_call(handle: DeploymentHandle, job: Job) -> Any:
    value = make(job.kind, job.size)
    check = _checker(job.method, value)

    async def call(_recorder: Recorder) -> None:
        check(await handle.remote(value))

    return call


def _checker(method: str, value: Any) -> Callable[[Any], None]:
    if method == "length":
        return checker(size_of(value))
    check = checker(value)
    if method != "changed":
        return check

    def check_changed(answer: Any) -> None:
        check(answer)
        if answer[0] != value[0] + 1:
            raise ValueError(f"the copy begins with {answer[0]}, not {value[0] + 1}")

    return check_changed


def _stream_call(handle: DeploymentHandle, job: Job) -> Any:
    async def call(recorder: Recorder) -> None:
        sent = time.perf_counter()
        count = 0
        async for item in handle.remote(job.size):
            if not count:
                recorder.first_items_s.append(time.perf_counter() - sent)
            if item != TOKEN:
                raise ValueError(f"item {count} is {item!r}")
            count += 1
            recorder.items += 1
        if count != job.size:
            raise ValueError(f"{count} items came of {job.size}")

    return call


def describe(error: BaseException) -> str:
    """One line that says what happened: the type and the gist of the text."""
    if isinstance(error, WindowFailed):
        return str(error)
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return f"{type(error).__name__}: {error.code().name}: {error.details()}"[:300]
    if isinstance(error, ray.exceptions.RayTaskError):  # its text is the remote traceback
        error = error.cause or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no text'}"[:300]
