"""What a network does to bytes: resets, silence, cuts, slices, delay, a narrow line.

A proxy stands between this process and a real replica. Payloads are compared by hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

import serve_grpc
from serve_grpc.carriers.grpc.credentials import KEEPALIVE_MS, PING_TIMEOUT_MS
from serve_grpc.errors import ReplicaDiedError
from tests.faults.calls import outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.limits import allowed
from tests.faults.memory import watched_memory
from tests.faults.tcp_proxy import Network, TcpProxy, proxied
from tests.ray.apps.watched import WATCHED
from tests.ray.carriers import options_over
from tests.ray.waiting import eventually

ROW = 5
CAP_MIB = 16
"""Of requests, or of replies, of one session that wait to be written: docs/limits.md."""
EXTRA_MIB = 8
DETECTED_S = (KEEPALIVE_MS + PING_TIMEOUT_MS) / 1000


class Line:
    """A handle whose session goes through a proxy."""

    def __init__(self, handle: Any, proxy: TcpProxy) -> None:
        self.handle, self.proxy = handle, proxy
        self.pids = (os.getpid(), handle.pid.remote().result(timeout_s=30))

    def is_up(self) -> bool:
        """Whether a call gets through."""
        try:
            return bool(self.handle.options(timeout_s=5).pid.remote().result())
        except ReplicaDiedError:
            return False

    def is_quiet(self) -> bool:
        """Whether no call is on its way."""
        statistics = serve_grpc.handle_statistics(self.handle)
        return statistics.in_flight == statistics.waiting == 0


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with proxied() as network:
        yield network


@pytest.fixture(scope="module")
def shared_line(network, deploy):
    # As on another node: what is sent to a replica with a lane waits in the pool of shared memory.
    options = options_over("grpc", {"ray_actor_options": {"num_cpus": 0.01}})
    handle = deploy(WATCHED.options(**options).bind(), "line")
    handle.pid.remote().result(timeout_s=30)
    return Line(handle, network.before(handle))


@pytest.fixture
def line(shared_line):
    yield shared_line
    shared_line.proxy.set()
    eventually(shared_line.is_up, timeout_s=30)
    eventually(shared_line.is_quiet, timeout_s=30)


def payload(rng: random.Random, most: int) -> bytes:
    """Random bytes, of a size from a few to `most`."""
    return rng.randbytes(int(most ** rng.random()))


async def corrupt(line: Line, payloads: list[bytes]) -> list[Any]:
    """What came back wrong, there and back by hash; lost calls are repeated."""
    handle = line.handle.options(idempotent=True)

    async def one(data: bytes) -> Any:
        while True:
            try:
                digest, back = await asyncio.gather(
                    handle.digest.remote(data), handle.echo.remote(data)
                )
            except ReplicaDiedError:
                continue
            return None if (digest, back) == (hashlib.sha256(data).hexdigest(), data) else data

    return [wrong for wrong in await asyncio.gather(*map(one, payloads)) if wrong is not None]


def test_a_reset_ends_each_call_at_once_and_truthfully(line, board, callers, measured):
    calls = {f"c{i}": i for i in range(200)}
    made = [(name, lambda n=name: line.handle.remote(board.path, n, 1.5)) for name in calls]
    running = callers.start(outcomes_of(made))
    eventually(lambda: board.count("start") == len(calls))
    cut_s = time.monotonic()
    assert line.proxy.cut() == 1
    outcomes = running.result(60)
    took_s = max(outcome.ended_s or 1e9 for outcome in outcomes) - cut_s
    wrongs = check(board, outcomes)
    measured(ROW, "TCP reset, 200 calls in flight", "settled after", "≤ 1 s", f"{took_s:.2f} s")
    measured(ROW, "TCP reset, 200 calls in flight", "wrong", "0", wrongs.counts())
    assert wrongs == NOTHING_WRONG
    assert took_s <= allowed(1)


@pytest.mark.parametrize("is_up", [True, False], ids=["request", "reply"])
def test_a_frame_that_is_cut_is_never_delivered(line, is_up, measured):
    rng = random.Random(is_up)
    wrong = []
    for _ in range(12):
        line.proxy.cut_after(rng.randrange(1, 2_000_000), is_up=is_up)
        wrong += asyncio.run(corrupt(line, [payload(rng, 1_000_000) for _ in range(8)]))
    what = "request" if is_up else "reply"
    measured(ROW, f"cut inside a {what}, 12 times", "corrupt payloads", "0", len(wrong))
    assert wrong == []


@pytest.mark.parametrize(
    ("weather", "most"),
    [
        ({"slice_bytes": 16}, 40_000),
        ({"delay_s": 0.2}, 1_000_000),
        ({"bytes_per_s": 1_000_000}, 300_000),
    ],
    ids=["slices", "delay", "narrow"],
)
def test_bad_weather_corrupts_nothing_and_costs_no_session(line, weather, most, measured):
    rng = random.Random(str(weather))
    before = len(line.proxy.accepted_s)
    line.proxy.set(**weather)
    with watched_memory(*line.pids) as growth:
        wrong = asyncio.run(corrupt(line, [payload(rng, most) for _ in range(24)]))
    sessions = len(line.proxy.accepted_s) - before
    measured(ROW, str(weather), "corrupt payloads", "0", len(wrong))
    measured(ROW, str(weather), "sessions lost", "0", sessions)
    measured(
        ROW, str(weather), "extra RSS", f"≤ {CAP_MIB + EXTRA_MIB} MiB", f"{growth.most_mib:.0f} MiB"
    )
    assert (wrong, sessions) == ([], 0)
    assert growth.most_mib <= CAP_MIB + EXTRA_MIB


@pytest.mark.long
def test_what_waits_for_a_narrow_line_is_bounded(line, callers, measured):
    """Both ways: megabytes of requests, and megabytes of replies, at 10 MB a second."""
    line.proxy.set(bytes_per_s=10_000_000)
    data = b"x" * 500_000

    async def upload() -> set[int]:
        return set(await asyncio.gather(*(line.handle.length.remote(data) for _ in range(120))))

    async def download() -> set[int]:
        limit = asyncio.Semaphore(CAP_MIB)

        async def one() -> int:
            async with limit:
                return len(await line.handle.blob.remote(1_000_000))

        return set(await asyncio.gather(*(one() for _ in range(60))))

    grew = {}
    for what in (upload, download):
        with watched_memory(*line.pids) as growth:
            sizes = callers.start(what()).result(100)
        assert len(sizes) == 1
        grew[what.__name__] = growth.most_mib
    for what, mib in grew.items():
        required = f"≤ {CAP_MIB + EXTRA_MIB} MiB"
        measured(ROW, f"60 MB of {what} at 10 MB/s", "extra RSS", required, f"{mib:.0f} MiB")
    assert max(grew.values()) <= CAP_MIB + EXTRA_MIB


@pytest.mark.long
def test_silence_is_noticed_and_what_waits_is_bounded(line, board, callers, measured):
    """Calls on the replica end in time; those that did not leave wait, and run afterwards."""
    names = [f"h{i}" for i in range(50)]
    held = [(name, lambda n=name: line.handle.remote(board.path, n, 1000)) for name in names]
    running = callers.start(outcomes_of(held))
    eventually(lambda: board.count("start") == len(names))
    data = b"x" * 500_000

    async def upload() -> list[Any]:
        made = (line.handle.length.remote(data) for _ in range(200))
        return await asyncio.gather(*made, return_exceptions=True)

    with watched_memory(*line.pids) as growth:
        line.proxy.set(is_black_hole=True)
        silent_s = time.monotonic()
        uploads = callers.start(upload())
        outcomes = running.result(60)
    took_s = max(outcome.ended_s or 1e9 for outcome in outcomes) - silent_s
    wrongs = check(board, outcomes)
    line.proxy.set()
    board.release()
    ends = uploads.result(60)
    failed = [end for end in ends if not isinstance(end, (int, ReplicaDiedError))]
    fault = "black hole, 50 calls in flight, 100 MB to send"
    measured(ROW, fault, "settled after", f"≤ {DETECTED_S + 1:.0f} s", f"{took_s:.2f} s")
    measured(ROW, fault, "wrong", "0", wrongs.counts())
    measured(ROW, fault, "extra RSS", f"≤ {CAP_MIB + EXTRA_MIB} MiB", f"{growth.most_mib:.0f} MiB")
    assert wrongs == NOTHING_WRONG
    assert failed == []
    assert ends.count(500_000) > 100
    assert took_s <= allowed(DETECTED_S + 1)
    assert growth.most_mib <= CAP_MIB + EXTRA_MIB
