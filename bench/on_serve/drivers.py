"""Sync callers: `.result()` in the threads of a driver, one process for each side and carrier.

The worker itself cannot be the driver: it opts deployments in, so it has imported serve_grpc. Like
any driver, these connect to a running Ray and make handles.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import ray

from bench.load.closed_loop import run_in_threads
from bench.load.payloads import checker, make
from bench.load.window import Counted
from bench.on_serve.apps import Job, WindowFailed, describe, handle_for
from bench.on_serve.sides import CarrierWatch, check_own_side
from bench.plan.contenders import GRPC_ONLY, Carrier, Side, parse

__all__ = ["Drivers"]

CALL_S = 20.0  # bound of one call


class Drivers:
    """The processes; each is started when first needed.

    Args:
        address: Of the Ray cluster they connect to.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._processes: dict[tuple[Side, Carrier], ProcessPoolExecutor] = {}

    async def measure(self, job: Job) -> Counted | WindowFailed:
        """Run one window. What goes wrong in it is returned, not raised."""
        who = parse(job.contender)
        process = who.side, who.carrier
        if process not in self._processes:
            self._processes[process] = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_connect,
                initargs=(self._address, who.carrier),
            )
        return await asyncio.get_running_loop().run_in_executor(
            self._processes[process], _measure, job
        )

    def close(self) -> None:
        """End them."""
        for process in self._processes.values():
            process.shutdown(cancel_futures=True)


def _connect(address: str, carrier: Carrier) -> None:
    if carrier == "grpc":
        os.environ.update(GRPC_ONLY)  # before serve_grpc is imported, which reads it then
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _measure(job: Job) -> Counted | WindowFailed:
    try:
        check_own_side(parse(job.contender).side)
        handle = handle_for(job.contender, job.app, job.method)
        value = make(job.kind, job.size)
        check = checker(value)

        def call() -> None:
            check(handle.remote(value).result(timeout_s=CALL_S))

        watch = CarrierWatch(handle)
        counted = run_in_threads(call, job.window, job.callee_pids)
        return replace(counted, carrier=watch.seen())
    except Exception as error:
        return WindowFailed(describe(error))
