"""Row 23: streams as arguments whose two ends are not as fast as each other."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator

import psutil
import pytest

from serve_grpc.config import settings
from tests.faults.calls import SETTLE_S, outcomes_of
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.fleet import watched_handle
from tests.faults.latencies import percentile, side_by_side
from tests.faults.limits import allowed
from tests.faults.test_uploads_lost import NAMES, ROW, UPLOADS, ways
from tests.ray.waiting import eventually

QUIET_S = 12.0
"""A generator makes nothing for so long: more than all times after which a peer counts as lost."""
LOOKED_AT_S = 6.0
MOST_CPU = 0.05


def cpu_share(pids, seconds):
    """Of one core, that each process uses in this time."""
    processes = [psutil.Process(pid) for pid in pids]

    def used_s():
        return [sum(process.cpu_times()[:2]) for process in processes]

    begin_s, before = time.monotonic(), used_s()
    time.sleep(seconds)  # what is measured
    took_s, after = time.monotonic() - begin_s, used_s()
    return [(now - then) / took_s for now, then in zip(after, before, strict=True)]


@pytest.mark.long
def test_a_slow_generator_times_out_nowhere_and_costs_nothing(
    feeder, sink, board, callers, measured, carrier
):
    pids = [handle.pid.remote().result(timeout_s=30) for handle in (feeder, sink)]
    idle = cpu_share(pids, LOOKED_AT_S)
    running = callers.start(
        outcomes_of(
            (name, lambda n=name, k=kinds: feeder.upload.remote(board.path, n, 2, QUIET_S, *k))
            for name, *kinds in ways(UPLOADS)
        )
    )
    eventually(lambda: board.count("reading") == UPLOADS, timeout_s=QUIET_S + 20)
    waiting = cpu_share(pids, LOOKED_AT_S)
    outcomes = running.result(SETTLE_S)
    wrong = check(board, outcomes, items=2)
    failed = [o for o in outcomes if o.kind != "ok"]
    fault = f"{UPLOADS} generators that pause for {QUIET_S:.0f} s; over {NAMES[carrier]}"
    measured(ROW, fault, "uploads failed", "0", len(failed))
    more = [max(0.0, now - before) for now, before in zip(waiting, idle, strict=True)]
    for end, share in zip(("caller", "replica"), more, strict=True):
        what = f"{end}: CPU more than without them"
        measured(ROW, fault, what, "≤ 5 % of a core", f"{share:.1%}")
    assert wrong == NOTHING_WRONG
    assert failed == []
    assert max(more) <= allowed(MOST_CPU)


class SlowHandler:
    """Takes an item each second of a stream without end. Args: `handle`, to a `Watched`."""

    def __init__(self, handle) -> None:
        self.handle = handle
        self.untaken: list[int] = []
        self.taken = 0
        self.left = 0

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """In the meantime; then notes what was made and not taken."""
        key = uuid.uuid4().hex
        made = 0

        async def items() -> AsyncIterator[bytes]:
            nonlocal made
            try:
                while True:
                    made += 1
                    yield b"x" * 1000
            finally:
                self.left += 1

        response = self.handle.take_slowly.remote(key, items(), 1.0)
        try:
            yield
            made_so_far = made
            taken = await self.handle.items_made.remote(key)
            self.untaken.append(made_so_far - taken)
            self.taken += taken
        finally:
            response.cancel()


def test_a_slow_handler_pauses_only_its_own_generator(serve_instance, measured):
    handle = watched_handle()
    slow = SlowHandler(handle)
    fault, window = "a handler that takes 1 item/s of a stream", settings.stream_window_items

    async def main() -> list[float]:
        ratios: list[float] = []
        while len(ratios) < 3 and min(ratios, default=2.0) > 1.5:
            alone, beside = await side_by_side(
                lambda: handle.echo.remote(1), slow.reading, rounds=2, seconds=1.0
            )
            before, after = percentile(alone, 0.99), percentile(beside, 0.99)
            ratios.append(after / before)
            what = f"others' p99, {before:.1f} ms without it"
            measured(ROW, fault, what, "≤ 1.5×", f"{after:.1f} ms ({after / before:.2f}×)")
        return ratios

    ratios = asyncio.run(main())
    most = max(slow.untaken)
    measured(ROW, fault, "items made and not taken", f"≤ {window} + the one at the gate", most)
    assert slow.taken > 0
    assert most <= window + 1
    assert min(ratios) <= 1.5
