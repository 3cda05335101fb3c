"""Sync callers: `.result()` in the threads of a driver, one driver process for each side.

The worker itself cannot be the driver: it opts deployments in, so it has imported serve_grpc. Like
any driver, these connect to a running Ray and make handles.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import ray

from bench.apps import Job, WindowFailed, describe, handle_for
from bench.contenders import Side, parse
from bench.load import run_in_threads
from bench.payloads import checker, make
from bench.sides import check_own_side
from bench.window import Counted

__all__ = ["Drivers"]

CALL_S = 20.0  # bound of one call


class Drivers:
    """The processes; each is started when first needed.

    Args:
        address: Of the Ray cluster they connect to.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._processes: dict[Side, ProcessPoolExecutor] = {}

    async def measure(self, job: Job) -> Counted | WindowFailed:
        """Run one window. What goes wrong in it is returned, not raised."""
        side = parse(job.contender).side
        if side not in self._processes:
            self._processes[side] = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_connect,
                initargs=(self._address,),
            )
        return await asyncio.get_running_loop().run_in_executor(
            self._processes[side], _measure, job
        )

    def close(self) -> None:
        """End them."""
        for process in self._processes.values():
            process.shutdown(cancel_futures=True)


def _connect(address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _measure(job: Job) -> Counted | WindowFailed:
    try:
        check_own_side(parse(job.contender).side)
        handle = handle_for(job.contender, job.app, job.method)
        value = make(job.kind, job.size)
        check = checker(value)

        def call() -> None:
            check(handle.remote(value).result(timeout_s=CALL_S))

        return run_in_threads(call, job.window, job.callee_pids)
    except Exception as error:
        return WindowFailed(describe(error))
