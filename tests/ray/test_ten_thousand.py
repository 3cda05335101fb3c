"""Ten thousand calls of every kind at once: none hangs, none is lost, no answers are mixed up."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.serve.exceptions import RequestCancelledError

import serve_grpc
from tests.ray.apps.bench import OPTIONS, Workbench
from tests.ray.apps.failures import Detailed

CALLS = 10_000
THREADS = 4
IN_FLIGHT = 250


@pytest.fixture(scope="module")
def trio(deploy):
    """Three replicas, 100 at a time each."""
    options = {**OPTIONS, "max_ongoing_requests": 100, "num_replicas": 3}
    return deploy(serve_grpc.deployment(**options)(Workbench).bind(), "trio")


def kinds(seed, number):
    """What each call is to be, always the same for a seed."""
    choose = random.Random(seed).choices
    return choose(["unary", "stream", "error", "cancel"], weights=[70, 12, 10, 8], k=number)


async def one_async(handle, kind, tag):
    if kind == "unary":
        assert await handle.remote(tag) == tag
    elif kind == "stream":
        stream = handle.options(method_name="items", stream=True).remote(tag[1] % 7)
        assert [item async for item in stream] == list(range(tag[1] % 7))
    elif kind == "error":
        with pytest.raises(Detailed):
            await handle.fail.remote("Detailed")
    else:
        response = handle.hold.remote(str(tag))
        await asyncio.sleep(0)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
    return kind


def one_sync(handle, kind, tag):
    if kind == "unary":
        assert handle.remote(tag).result(timeout_s=30) == tag
    elif kind == "stream":
        stream = handle.options(method_name="items", stream=True).remote(tag[1] % 7)
        assert list(stream) == list(range(tag[1] % 7))
    elif kind == "error":
        with pytest.raises(Detailed):
            handle.fail.remote("Detailed").result(timeout_s=30)
    else:
        response = handle.hold.remote(str(tag))
        response.cancel()
        with pytest.raises(RequestCancelledError):
            response.result(timeout_s=30)
    return kind


async def many_async(handle, number):
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def one(i, kind):
        async with limit:
            return await one_async(handle, kind, ["async", i])

    return await asyncio.gather(*(one(i, kind) for i, kind in enumerate(kinds(0, number))))


def many_sync(handle, worker, number):
    return [
        one_sync(handle, kind, [f"thread {worker}", i])
        for i, kind in enumerate(kinds(worker, number))
    ]


def test_ten_thousand_mixed_calls_all_end_as_they_should(trio):
    per_thread = CALLS // 20
    in_loop = CALLS - THREADS * per_thread
    started_s = time.monotonic()
    with ThreadPoolExecutor(THREADS + 1) as threads:
        futures = [
            threads.submit(many_sync, trio, worker, per_thread) for worker in range(1, THREADS + 1)
        ]
        futures.append(threads.submit(lambda: asyncio.run(many_async(trio, in_loop))))
        ended = Counter(kind for future in futures for kind in future.result(timeout=100))
    assert ended == Counter(kinds(0, in_loop)) + sum(
        (Counter(kinds(worker, per_thread)) for worker in range(1, THREADS + 1)), Counter()
    )
    assert sum(ended.values()) == CALLS
    assert time.monotonic() - started_s < 40
    # Nothing is left: every slot is free again on every replica.
    seen = {}
    for response in [trio.replica.remote() for _ in range(60)]:
        facts = response.result(timeout_s=20)
        seen[facts["replica_id"]] = facts
    assert len(seen) == 3
    metrics = trio._router._asyncio_router._metrics_manager
    assert metrics.num_queued_requests == 0
    for response in [trio.watch.remote() for _ in range(30)]:
        assert response.result(timeout_s=20)["running"] == 0
