"""Closed-loop load: N workers that each await one call before they make the next.

One window at a time: the load starts, a ramp passes uncounted, the window is counted, what is still
under way is let go. The same code drives every contender, from a caller replica, from a process
without Serve, and from a driver's threads; what a call is, the contender says. No Ray here.

Nothing is looked at per call but a clock and a list: the window is cut out of the list by where it
stood at the beginning and at the end. CPU times are those of whole processes, so the caller's
includes this load.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil

from bench.load.window import Counted, Window

__all__ = ["DRAIN_S", "Recorder", "run_in_loop", "run_in_threads"]

DRAIN_S = 3.0
"""Calls that end later than this after the window are cancelled. Until then they are waited for:
what one contender leaves behind on the replica would slow down the next."""
CANCEL_S = 5.0
POLL_S = 0.01  # how often threads' calls are counted while a window waits for them


@dataclass
class Recorder:
    """What calls report to. Appending to a list is atomic: threads may share it."""

    latencies_s: list[float] = field(default_factory=list)
    first_items_s: list[float] = field(default_factory=list)
    items: int = 0


@dataclass(frozen=True)
class _Mark:
    """Where everything stood at one moment."""

    at: float
    calls: int
    first_items: int
    items: int
    caller_cpu_s: float
    callee_cpu_s: float

    @classmethod
    def now(cls, recorder: Recorder, callees: Sequence[psutil.Process]) -> _Mark:
        callee_cpu_s = 0.0
        for process in callees:
            times = process.cpu_times()
            callee_cpu_s += times.user + times.system
        return cls(
            time.monotonic(),
            len(recorder.latencies_s),
            len(recorder.first_items_s),
            recorder.items,
            time.process_time(),
            callee_cpu_s,
        )


def _between(recorder: Recorder, begin: _Mark, end: _Mark) -> Counted:
    return Counted(
        end.at - begin.at,
        recorder.latencies_s[begin.calls : end.calls],
        recorder.first_items_s[begin.first_items : end.first_items],
        end.items - begin.items,
        end.caller_cpu_s - begin.caller_cpu_s,
        end.callee_cpu_s - begin.callee_cpu_s,
    )


# ------------------------------------------------------------ on an event loop


async def run_in_loop(
    call: Callable[[Recorder], Awaitable[None]], window: Window, callee_pids: Sequence[int]
) -> Counted:
    """Load from this event loop.

    Args:
        call: Makes one call and checks its answer. Streams also report items to the recorder.
        callee_pids: Processes of this machine that answer.

    Raises:
        Exception: What a call raised; the window is given up at the first.
    """
    recorder = Recorder()
    latencies_s = recorder.latencies_s
    is_over = False
    awaited_calls = 0
    reached, looked = asyncio.Event(), asyncio.Event()

    async def worker() -> None:
        while not is_over:
            sent = time.perf_counter()
            await call(recorder)
            latencies_s.append(time.perf_counter() - sent)
            if len(latencies_s) == awaited_calls:
                reached.set()
                await looked.wait()  # the load may be over; a call of 100 MB would be for nothing

    async def until(calls: int, at_least_s: float) -> None:
        nonlocal awaited_calls
        deadline = time.monotonic() + window.max_s
        await asyncio.sleep(at_least_s)
        awaited_calls = calls
        reached.clear()
        looked.clear()
        if len(latencies_s) < calls:
            try:
                await asyncio.wait_for(reached.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                pass  # `max_s` is the bound; what did end is counted

    async def keep_time() -> Counted:
        nonlocal is_over
        if window.ramp_calls or window.ramp_s:
            await until(window.ramp_calls, window.ramp_s)
        begin = _Mark.now(recorder, callees)  # without a ramp, before the first call leaves
        looked.set()
        await until(begin.calls + window.min_calls, window.seconds)
        end = _Mark.now(recorder, callees)
        is_over = True
        looked.set()
        return _between(recorder, begin, end)

    callees = [psutil.Process(pid) for pid in callee_pids]
    await asyncio.sleep(window.start_at - time.monotonic())
    keeper = asyncio.create_task(keep_time())
    workers = [asyncio.create_task(worker()) for _ in range(window.in_flight)]
    try:
        # As long as the keeper runs, a worker ends only if its call failed.
        done, _ = await asyncio.wait([keeper, *workers], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {keeper}:
            task.result()
        done, _ = await asyncio.wait(workers, timeout=DRAIN_S)
        for task in done:
            task.result()
        return await keeper
    finally:
        is_over = True
        for task in (keeper, *workers):
            task.cancel()
        done, _ = await asyncio.wait([keeper, *workers], timeout=CANCEL_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # the first failure is raised above; the others are like it


# ------------------------------------------------------------ on threads


def run_in_threads(call: Callable[[], None], window: Window, callee_pids: Sequence[int]) -> Counted:
    """Load from `window.in_flight` threads; the same in all else.

    Args:
        call: Makes one call, waits for its answer and checks it. It is bounded in time.
        callee_pids: Processes of this machine that answer.
    """
    recorder = Recorder()
    is_over = threading.Event()

    def worker() -> None:
        try:
            while not is_over.is_set():
                sent = time.perf_counter()
                call()
                recorder.latencies_s.append(time.perf_counter() - sent)
        finally:
            is_over.set()  # by a failure, if not by the end of the window

    def until(calls: int, at_least_s: float) -> None:
        deadline = time.monotonic() + window.max_s
        is_over.wait(at_least_s)
        while len(recorder.latencies_s) < calls and time.monotonic() < deadline:
            if is_over.wait(POLL_S):
                break

    callees = [psutil.Process(pid) for pid in callee_pids]
    with ThreadPoolExecutor(window.in_flight) as pool:
        futures = [pool.submit(worker) for _ in range(window.in_flight)]
        try:
            until(window.ramp_calls, window.ramp_s)
            begin = _Mark.now(recorder, callees)
            until(begin.calls + window.min_calls, window.seconds)
            end = _Mark.now(recorder, callees)
        finally:
            is_over.set()
        for future in futures:
            future.result()
    return _between(recorder, begin, end)
