"""Accounting: what Serve counts and logs about a call, on both sides.

Serve's counters, gauges and log handlers are real, without a Ray cluster that would collect them:
see bench/stand_ins/serve.py. Lines of the access log go to a file and to /dev/null for stderr,
which is what Serve's default settings write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.micro.pair import BATCH, REQUEST_ID
from bench.stand_ins.serve import (
    ROUTE,
    cancel_tasks,
    new_replica_adapter,
    new_router,
    running,
    serve_log,
)
from serve_grpc._serve.replicas import ReplicaAdapter


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.run_until_complete(cancel_tasks())
    made.close()


@pytest.mark.parametrize("calls", [1, BATCH], ids="{} at once".format)
def test_calls_counted_and_flushed(cost: Any, loop: asyncio.AbstractEventLoop, calls: int) -> None:
    async def count() -> None:
        adapter, manager = new_router()
        adapter.subscribe(lambda _: None)
        infos = running(1, max_ongoing_requests=100)
        manager._update_running_replicas(infos)
        replica_id = infos[0].replica_id.unique_id

        def account() -> None:
            for _ in range(calls):
                adapter.on_call(ROUTE, "default")
                adapter.on_sent(replica_id)
                adapter.on_finished(replica_id)
            adapter._flush()

        cost(account, part="accounting", side="caller", calls=calls)

    loop.run_until_complete(count())


@contextlib.contextmanager
def replica(loop: asyncio.AbstractEventLoop, log_dir: Path) -> Iterator[ReplicaAdapter]:
    """A replica and its log. Not a fixture: pytest's own log handlers come between phases."""

    async def echo(text: str) -> str:
        return text

    async def make() -> ReplicaAdapter:
        return new_replica_adapter(echo, max_ongoing_requests=100)

    with serve_log(log_dir):
        adapter = loop.run_until_complete(make())
        yield adapter
        adapter._access_log.close()


def test_slots_taken_and_given_back(
    cost: Any, loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    with replica(loop, tmp_path) as adapter:

        def admit() -> None:
            for _ in range(BATCH):
                assert adapter.try_admit()
            for _ in range(BATCH):
                adapter.release()

        cost(admit, part="accounting", side="replica", calls=BATCH)
        assert adapter.ongoing() == 0


@pytest.mark.parametrize("calls", [1, BATCH], ids="{} at once".format)
def test_requests_recorded_and_lines_written(
    cost: Any, loop: asyncio.AbstractEventLoop, tmp_path: Path, calls: int
) -> None:
    with replica(loop, tmp_path) as adapter:

        def record() -> None:
            for _ in range(calls):
                adapter.record(
                    method_name="__call__",
                    route=ROUTE,
                    request_id=REQUEST_ID,
                    client="",
                    latency_ms=1.0,
                    status="OK",
                    exception_type=None,
                )
            adapter._access_log.write()

        cost(record, part="accounting", side="replica", calls=calls)
    (log,) = tmp_path.glob("*.log")
    assert REQUEST_ID in log.read_text()


def test_recorded_requests_reported_by_serve(
    cost: Any, loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    """Serve's own task does this every 100 ms, for requests over any transport."""
    with replica(loop, tmp_path) as adapter:
        metrics: Any = adapter._metrics

        def recorded() -> tuple[()]:
            for _ in range(BATCH):
                metrics.record_request_metrics(route=ROUTE, latency_ms=1.0, is_error=False)
            return ()

        cost.of_prepared(
            metrics._report_cached_metrics,
            recorded,
            part="accounting",
            side="replica",
            calls=BATCH,
        )
