"""Large items of a stream among a handler's arguments, which are loaded in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from serve_grpc.errors import SerializationError
from serve_grpc.payload import ON_LOOP_BYTES
from serve_grpc.request_stream import RequestStream
from tests.ray.waiting import eventually_async
from tests.unit.inboxes import Fed, of_items
from tests.unit.sessions_loop import PATIENCE_S

LARGE = b"x" * (ON_LOOP_BYTES + 1)


class Slow:
    """Waits in its loading until `go`; notes its threads."""

    go, is_inside = threading.Event(), threading.Event()
    threads: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.padding = LARGE

    def __setstate__(self, state: dict[str, Any]) -> None:
        Slow.threads += (threading.get_ident(),)
        Slow.is_inside.set()
        assert Slow.go.wait(PATIENCE_S)
        self.__dict__.update(state)


@pytest.fixture
def slow() -> Iterator[type[Slow]]:
    Slow.go, Slow.is_inside, Slow.threads = threading.Event(), threading.Event(), ()
    yield Slow
    Slow.go.set()


def test_a_large_item_is_loaded_in_a_thread_and_not_lost_if_nobody_waits_for_that(
    slow: type[Slow],
) -> None:
    fed, stream = of_items(Slow(), "next", window=(4, 10**9))

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        assert fed.told == []
        slow.go.set()
        item = await anext(stream)
        assert (type(item), item.padding) == (Slow, LARGE)
        assert await anext(stream) == "next"
        assert [items for items, _, _ in fed.told] == [2]

    asyncio.run(main())
    assert threading.get_ident() not in slow.threads
    assert len(slow.threads) == 2


def test_an_item_that_was_put_back_goes_to_the_task_that_waits(slow: type[Slow]) -> None:
    fed = Fed()
    stream = RequestStream(fed.inbox)

    async def main() -> None:
        first, second = (asyncio.ensure_future(anext(stream)) for _ in range(2))
        await asyncio.sleep(0)
        fed.feed(Slow())
        await eventually_async(slow.is_inside.is_set)
        first.cancel()
        slow.go.set()
        assert type(await asyncio.wait_for(second, PATIENCE_S)) is Slow

    asyncio.run(main())


def test_a_cancel_while_a_large_item_is_loaded_after_the_end_of_the_call_keeps_nothing(
    slow: type[Slow],
) -> None:
    fed, stream = of_items(Slow())

    async def main() -> None:
        waiting = asyncio.ensure_future(anext(stream))
        await eventually_async(slow.is_inside.is_set)
        fed.inbox.cut_off()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        slow.go.set()

    asyncio.run(main())
    assert "0 items" in repr(stream)


class Exits:
    """Ends the process that loads it, were it not for us."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit",)


def test_an_item_that_cannot_be_read_fails_alone() -> None:
    async def on_a_loop() -> None:
        fed, stream = of_items(Exits(), "next", window=(4, 1000))
        with pytest.raises(SerializationError, match="in the request: SystemExit") as raised:
            await anext(stream)
        assert raised.value.direction == "request"
        assert [each async for each in stream] == ["next"]
        assert [items for items, _, _ in fed.told] == [2]

    asyncio.run(on_a_loop())
    fed, stream = of_items(Exits(), "next", window=(4, 1000))
    with pytest.raises(SerializationError):
        next(stream)
    assert list(stream) == ["next"]
    assert [items for items, _, _ in fed.told] == [2]


def test_a_large_item_that_cannot_be_read_counts_as_taken() -> None:
    fed = Fed(window=(1, 10**9))
    fed.feed_payload(LARGE)
    stream = RequestStream(fed.inbox)

    async def main() -> None:
        with pytest.raises(SerializationError):
            await anext(stream)

    asyncio.run(main())
    assert fed.told == [(1, len(LARGE), False)]
