"""Measures the cases of one set of Serve's flags: `python -m bench.on_serve.worker`.

Starts a Ray and a Serve of its own and lets the contenders of each case take turns, round by round.
How it is told what to do, and hands in what it found, stands in `workers/protocol.py`. Ray Serve
reads its flags when it is imported, hence a process for each set of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray import serve

from bench.load.floors import Floors
from bench.load.payloads import make
from bench.load.window import RAMP, Counted, Window, sample_of
from bench.on_serve.apps import Job, Large, WindowFailed, describe
from bench.on_serve.deployed import Apps, callee_of, callers_of
from bench.on_serve.drivers import Drivers
from bench.on_serve.memory import Memory
from bench.plan.contenders import BY_REFERENCE, parse
from bench.results.run import Case, Sample
from bench.workers.protocol import Parent

__all__ = ["Worker", "local_ray", "main"]

WARM_UP_S = 0.05
MEASURE_S = 60.0  # bound of one window, ramp and drain included
MEMORY_S = 600.0  # and of all calls after which memory is looked at, idle time included
TOGETHER_S = 0.05  # until several callers begin, so that all have heard of it


def main() -> None:
    """Do what the parent's order says."""
    parent = Parent()
    parent.log("starting Ray and Serve")
    with local_ray():
        asyncio.run(Worker(parent).run())


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray and Serve for this process alone, without a proxy: nothing here goes over HTTP."""
    ray.init(
        address="local",
        num_cpus=4,  # so many idle workers are started at once; replicas ask for next to none
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        serve.start(proxy_location="Disabled")
        yield
    finally:
        ray.shutdown()  # the cluster is ours alone: Serve and its replicas go with it


class Worker:
    """Measures the parent's cases, one after another."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._apps = Apps(parent.log)
        self._drivers = Drivers(ray.get_runtime_context().gcs_address)
        self._floors: Floors | None = None

    async def run(self) -> None:
        """All cases of the order."""
        order = self._parent.order
        try:
            for index, case in enumerate(order.cases):
                await self._apps.keep_for(order.cases[index:])
                for number in range(order.rounds_of(case)):
                    for contender in case.contenders:
                        sample = await self._sample(case, contender, number)
                        self._parent.sample(case, sample)
        finally:
            self._drivers.close()
            if self._floors is not None:
                self._floors.close()

    async def _sample(self, case: Case, contender: str, number: int) -> Sample:
        """One window, after a short one if it is the first. Failures are samples too."""
        if case.workload["kind"] == "memory":
            return await self._memory_sample(case, contender, number)
        callers = callers_of(case, contender)
        window = _window(case, callers, self._parent.order.window_s)
        windows = [window] if number else [_warm_up(window), window]
        try:
            for each in windows:
                counted = await self._measure(case, contender, callers, each)
            return sample_of(contender, number, counted)
        except Exception as error:  # the run goes on, and the report shows the reason
            return Sample(contender, number, error=describe(error))

    async def _memory_sample(self, case: Case, contender: str, number: int) -> Sample:
        load, who = case.workload, parse(contender)
        self._parent.log(f"{load['calls']} calls and {load['idle_s']:g} s idle over {contender}")
        try:
            await self._apps.deploy_for(case)
            job = self._job(case, contender, Window(1, 0))
            (caller,) = self._apps.callers(who, 1)
            response = caller.measure_memory.remote(job, load["calls"], load["idle_s"])
            found: Memory | WindowFailed = await asyncio.wait_for(response, MEMORY_S)
            if isinstance(found, WindowFailed):
                raise found
            return found.sample(contender, number)
        except Exception as error:  # the run goes on, and the report shows the reason
            return Sample(contender, number, error=describe(error))

    def _job(self, case: Case, contender: str, window: Window) -> Job:
        load = case.workload
        callee = callee_of(case, parse(contender))
        large = None
        if "beside" in load:
            beside = load["beside"]
            large = Large(beside["method"], beside["value"], beside["size"])
        return Job(
            contender,
            callee.name,
            load["method"],
            load["value"],
            load["size"],
            window,
            self._apps.callee_pids(callee),
            large,
        )

    async def _measure(
        self, case: Case, contender: str, callers: int, window: Window
    ) -> list[Counted]:
        load, who = case.workload, parse(contender)
        await self._apps.deploy_for(case)
        if who.is_floor:
            value = make(load["value"], load["size"])
            return [await (await self._ready_floors()).measure(who.transport, value, window)]
        job = self._job(case, contender, window)
        if load["kind"] == "sync":
            responses: list[Any] = [self._drivers.measure(job)]
        else:
            handles = self._apps.callers(who, callers)
            if callers > 1:
                job = replace(job, window=replace(window, start_at=time.monotonic() + TOGETHER_S))
            # The callees' CPU time is one caller's to count.
            jobs = [job, *[replace(job, callee_pids=())] * (callers - 1)]
            responses = [h.measure.remote(one) for h, one in zip(handles, jobs, strict=True)]
        counted: list[Counted] = []
        for outcome in await asyncio.wait_for(asyncio.gather(*responses), MEASURE_S):
            if isinstance(outcome, WindowFailed):
                raise outcome
            counted.append(outcome)
        return counted

    async def _ready_floors(self) -> Floors:
        if self._floors is None:
            (caller,) = self._apps.callers(parse(BY_REFERENCE), 1)
            self._floors = Floors(is_uvloop=await caller.loop_module.remote() == "uvloop")
        return self._floors


def _window(case: Case, callers: int, seconds: float) -> Window:
    load = case.workload
    seconds *= load.get("share", 1)
    ramp_s = RAMP * seconds if load.get("ramp", True) else 0.0
    if callers > 1:  # of fixed length, so that all callers' windows are at one time
        share = load["in_flight"] // callers
        return Window(share, 2 * seconds, min_calls=0, ramp_s=ramp_s)
    return Window(
        load["in_flight"],
        seconds,
        min_calls=load.get("min_calls", Window.min_calls),
        max_s=load.get("max_s", Window.max_s),
        ramp_s=ramp_s,
        ramp_calls=load["in_flight"] if ramp_s else 0,
    )


def _warm_up(window: Window) -> Window:
    """Connects, and lets caches and buffers take their size."""
    return replace(window, seconds=WARM_UP_S, min_calls=1, ramp_s=0.0, ramp_calls=0)


if __name__ == "__main__":
    main()
