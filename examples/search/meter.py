"""Measures one inner call, `Index.tokenise`, over each transport, from inside a caller replica.

The caller is a plain Serve deployment, and only its handle differs from one transport to the
next. Load is closed-loop: N workers that each await one call before they send the next. This file
measures one window at a time; demo.py interleaves the windows and compares them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Literal

from ray import serve
from ray.serve.handle import DeploymentHandle

import serve_grpc

Transport = Literal["by reference", "Serve's gRPC", "serve_grpc"]
TRANSPORTS: tuple[Transport, ...] = ("by reference", "Serve's gRPC", "serve_grpc")

QUERY = "how does a caller retry a rejected request"
RAMP = 0.25  # share of a window that passes uncounted, until the load is steady


@dataclass(frozen=True)
class Sample:
    """What one window gave."""

    p50_ms: float
    calls_per_s: float


@serve.deployment(max_ongoing_requests=1)
class Meter:
    """The caller. One measurement at a time."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._handles: dict[Transport, DeploymentHandle] = {}

    async def measure(self, transport: Transport, in_flight: int, seconds: float) -> Sample:
        """Keep `in_flight` calls going; count those that end inside `seconds` after the ramp.

        Raises:
            ValueError: an answer was wrong.
        """
        call = self._handle(transport).tokenise
        expected = QUERY.split()
        begin = time.perf_counter() + RAMP * seconds
        end = begin + seconds
        latencies_s: list[float] = []

        async def worker() -> None:
            while (sent := time.perf_counter()) < end:
                answer = await call.remote(QUERY)
                done = time.perf_counter()
                if answer != expected:
                    raise ValueError(f"{transport} answered {answer!r}")
                if begin <= done <= end:
                    latencies_s.append(done - sent)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        if not latencies_s:  # no call was quick enough to end inside the window
            raise TimeoutError(f"{transport}: no answer within {seconds} s")
        return Sample(statistics.median(latencies_s) * 1000, len(latencies_s) / seconds)

    def _handle(self, transport: Transport) -> DeploymentHandle:
        """Return this replica's one handle for `transport`, made at its first use."""
        if transport not in self._handles:
            module = serve_grpc if transport == "serve_grpc" else serve
            handle = module.get_deployment_handle("Index", app_name=self._app_name)
            by_reference = transport == "by reference"
            self._handles[transport] = handle.options(_by_reference=by_reference)
        return self._handles[transport]
