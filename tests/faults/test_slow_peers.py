"""A consumer that takes one item a second of a stream without end."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest

from serve_grpc.config import settings
from tests.faults.fleet import watched_handle
from tests.faults.latencies import percentile, side_by_side

ROW = 15
ITEM_BYTES = 1_000
FAULT = "1 item/s of a stream without end"


@pytest.fixture(scope="module")
def handle(serve_instance):
    return watched_handle()


class SlowConsumer:
    """Args: `handle`, of the deployment that streams."""

    def __init__(self, handle) -> None:
        self.handle = handle
        self.buffered: list[int] = []
        self.taken = 0

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Takes an item each second in the meantime; then notes what was made and not taken."""
        key = uuid.uuid4().hex
        stream = self.handle.options(method_name="fast", stream=True).remote(key, ITEM_BYTES)
        taken = 0

        async def read() -> None:
            nonlocal taken
            async for _ in stream:
                taken += 1
                await asyncio.sleep(1)  # what a slow consumer is

        reading = asyncio.create_task(read())
        try:
            yield
            made = await self.handle.items_made.remote(key)
            self.buffered.append(made - taken)
            self.taken += taken
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def others_beside(handle, consumer, measured, *, rounds, seconds, attempts):
    """p99 of unary calls, with the consumer divided by without, the best of some attempts."""
    ratio = 1e9
    for _ in range(attempts):
        alone, beside = asyncio.run(
            side_by_side(
                lambda: handle.echo.remote(1), consumer.reading, rounds=rounds, seconds=seconds
            )
        )
        before, after = percentile(alone, 0.99), percentile(beside, 0.99)
        ratio = min(ratio, after / before)
        what = f"others' p99, {before:.1f} ms without it"
        measured(ROW, FAULT, what, "≤ 1.5×", f"{after:.1f} ms ({after / before:.2f}×)")
        if ratio <= 1.5:
            break
    return ratio


def window_is_held(consumer, measured):
    most, window = max(consumer.buffered), settings.stream_window_items
    measured(ROW, FAULT, "items made and not taken", f"≤ {window} + the one at the gate", most)
    assert consumer.taken > 0
    assert most <= window + 1


def test_a_slow_consumer_pauses_only_its_own_producer(handle, measured):
    consumer = SlowConsumer(handle)
    ratio = others_beside(handle, consumer, measured, rounds=2, seconds=1.0, attempts=3)
    window_is_held(consumer, measured)
    assert ratio <= 1.5


@pytest.mark.long
def test_a_slow_consumer_for_a_while(handle, measured):
    consumer = SlowConsumer(handle)
    ratio = others_beside(handle, consumer, measured, rounds=4, seconds=3.0, attempts=2)
    window_is_held(consumer, measured)
    assert ratio <= 1.5
