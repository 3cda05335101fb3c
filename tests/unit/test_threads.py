"""Threads of our own do not wait for the user's."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

from serve_grpc.threads import THREAD_NAME, in_thread


def test_work_of_ours_does_not_wait_for_a_busy_default_executor() -> None:
    release = threading.Event()

    async def scenario() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        users = loop.run_in_executor(None, release.wait)
        name = await in_thread(lambda: threading.current_thread().name)
        release.set()
        await users
        return name

    assert asyncio.run(scenario()).startswith(THREAD_NAME)


def test_it_runs_in_the_context_of_whoever_asked() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def scenario() -> str:
        variable.set("mine")
        return await in_thread(variable.get)

    assert asyncio.run(scenario()) == "mine"
