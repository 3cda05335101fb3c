"""One stream among the arguments of a request: fed from one thread, consumed in others."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.errors import RequestStreamError
from serve_grpc.payload import Segments
from serve_grpc.serialization import get_serializer
from serve_grpc.streams.inbox import Inbox
from tests.ray.waiting import eventually_async
from tests.unit.inboxes import Fed
from tests.unit.sessions_loop import PATIENCE_S, until


def drained(inbox: Inbox) -> list[bytes]:
    """What is left to be taken, as it came."""
    items = []
    while (item := inbox.take()) is not None:
        assert type(item) is bytes
        items.append(item)
    return items


def test_items_come_in_order_and_then_the_end() -> None:
    fed = Fed()
    for item in (b"1", b"2", b""):
        fed.feed_payload(item)
    fed.end()

    async def passed() -> list[object]:
        items: list[object] = []
        while await fed.inbox.wait_item():
            items.append(fed.inbox.take())
        return items

    assert asyncio.run(passed()) == [b"1", b"2", b""]
    assert not fed.inbox.wait_item_blocking()
    assert (fed.inbox.error, fed.inbox.failure(), fed.told) == (None, None, [])


def test_an_error_is_told_as_it_came_and_as_an_exception() -> None:
    fed = Fed()
    fed.feed_payload(b"before it")
    fed.fail("broken")
    assert fed.inbox.wait_item_blocking()
    assert drained(fed.inbox) == [b"before it"]
    assert not fed.inbox.wait_item_blocking()
    assert fed.inbox.error == Error(message="broken")
    first, second = fed.inbox.failure(), fed.inbox.failure()
    assert type(first) is type(second) is RequestStreamError
    assert first is not second


def test_nothing_follows_an_item_that_was_too_large() -> None:
    """The session says so by an error of its own, and the caller goes on until it hears of it."""
    fed = Fed()
    fed.fail("too large")
    assert fed.is_closed
    fed.feed("late")
    fed.end()
    assert drained(fed.inbox) == []
    assert fed.inbox.error == Error(message="too large")


def test_credit_goes_back_when_half_a_window_was_taken() -> None:
    fed = Fed(window=(4, 1000))
    fed.inbox.took(1)
    assert fed.told == []
    fed.inbox.took(2)
    assert fed.told == [(2, 3, False)]
    fed.inbox.took(500)
    assert fed.told == [(2, 3, False), (1, 500, False)]


def test_threads_that_count_at_once_lose_no_credit() -> None:
    fed = Fed(window=(2, 10**9))

    def take(_: int) -> None:
        for _ in range(1000):
            fed.inbox.took(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    assert sum(items for items, _, _ in fed.told) == sum(n for _, n, _ in fed.told) == 8000


@pytest.mark.parametrize("stop", [Inbox.close, Inbox.cut_off])
def test_once_it_is_stopped_nothing_is_kept(stop: object) -> None:
    assert callable(stop)
    fed = Fed()
    fed.feed(1, 2)
    taken = fed.inbox.take()
    assert taken is not None
    stop(fed.inbox)
    fed.feed(3)
    fed.inbox.put_back(taken)
    assert drained(fed.inbox) == []
    assert not fed.inbox.wait_item_blocking()
    assert fed.inbox.error is not None
    assert fed.inbox.error.code == Error.CANCELLED
    assert "the" in fed.inbox.error.message
    assert fed.inbox.take() is None


def test_closing_is_told_once_and_only_while_the_call_goes_on() -> None:
    fed, over = Fed(), Fed()
    fed.inbox.close()
    fed.inbox.close()
    assert fed.told == [(0, 0, True)]
    over.inbox.cut_off()
    over.inbox.close()
    over.inbox.took(10**6)
    assert over.told == []


def test_one_that_is_kept_beyond_its_call_keeps_nothing_of_it() -> None:
    class Session:
        def grant(self, *_: object) -> None: ...

    session = Session()
    seen = weakref.ref(session)
    inbox = Inbox("pickle", (1, 1), session.grant, lambda _: ValueError())
    del session
    inbox.cut_off()
    gc.collect()
    assert seen() is None


def test_payloads_are_freed_when_the_call_is_over() -> None:
    class Memory(bytearray):
        pass

    memory = Memory(10)
    seen = weakref.ref(memory)
    fed = Fed()
    fed.feed_payload(Segments([memoryview(memory)]))
    del memory
    assert seen() is not None
    fed.inbox.cut_off()
    assert seen() is None


def test_an_item_that_was_put_back_is_the_next_one() -> None:
    fed = Fed()
    for item in (b"1", b"2", b"3"):
        fed.feed_payload(item)
    first = fed.inbox.take()
    assert first is not None
    fed.inbox.put_back(first)
    assert drained(fed.inbox) == [b"1", b"2", b"3"]


async def woken(fed: Fed, wake: object) -> bool:
    """What a task that waits is told, when `wake` is called in another thread."""
    assert callable(wake)
    waiting = asyncio.ensure_future(fed.inbox.wait_item())
    await eventually_async(lambda: "<Waiters 1>" in repr(fed.inbox))
    await asyncio.get_running_loop().run_in_executor(None, wake)
    answer = await asyncio.wait_for(waiting, PATIENCE_S)
    assert "<Waiters 0>" in repr(fed.inbox)
    return answer


@pytest.mark.parametrize(
    ("what", "there_is_one"),
    [("item", True), ("end", False), ("fail", False), ("close", False), ("cut_off", False)],
)
def test_whatever_happens_wakes_tasks_and_threads(what: str, there_is_one: bool) -> None:
    for is_task in (True, False):
        fed = Fed()
        wake = {
            "item": lambda fed=fed: fed.feed("item"),
            "end": fed.end,
            "fail": fed.fail,
            "close": fed.inbox.close,
            "cut_off": fed.inbox.cut_off,
        }[what]
        if is_task:
            assert asyncio.run(woken(fed, wake)) is there_is_one
            continue
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(fed.inbox.wait_item_blocking)
            until(lambda fed=fed: "<Waiters 1>" in repr(fed.inbox))
            wake()
            assert answer.result(PATIENCE_S) is there_is_one
        assert "<Waiters 0>" in repr(fed.inbox)


def test_a_wait_that_was_cancelled_leaves_no_waiter_and_loses_no_item() -> None:
    fed = Fed()

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(fed.inbox.wait_item(), 0.001)
        assert "<Waiters 0>" in repr(fed.inbox)
        waiting = asyncio.ensure_future(fed.inbox.wait_item())
        await asyncio.sleep(0)
        fed.feed_payload(b"1")
        waiting.cancel()  # in the very turn in which it is woken
        await asyncio.gather(waiting, return_exceptions=True)
        assert await fed.inbox.wait_item()

    asyncio.run(main())
    assert drained(fed.inbox) == [b"1"]


def test_a_loop_that_was_closed_does_not_keep_others_from_being_woken() -> None:
    fed, loop = Fed(), asyncio.new_event_loop()
    waiting = loop.create_task(fed.inbox.wait_item())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(fed.inbox.wait_item_blocking)
        until(lambda: "<Waiters 2>" in repr(fed.inbox))
        fed.feed("item")
        assert answer.result(PATIENCE_S)
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_tasks_and_threads_that_share_it_get_each_item_once(is_cut_off: bool) -> None:
    """Fed by one thread while two threads and two tasks consume; perhaps stopped in the midst."""
    fed, count = Fed(window=(64, 10**9)), 4000
    taken: list[bytes] = []

    def feed() -> None:
        for number in range(count):
            fed.feed_payload(b"%d" % number)
            if is_cut_off and number == count // 2:
                fed.inbox.cut_off()
        fed.end()

    def take() -> None:
        while fed.inbox.wait_item_blocking():
            if (item := fed.inbox.take()) is not None:
                assert type(item) is bytes
                taken.append(item)

    async def take_on_a_loop() -> None:
        async def one() -> None:
            while await fed.inbox.wait_item():
                if (item := fed.inbox.take()) is not None:
                    assert type(item) is bytes
                    taken.append(item)

        await asyncio.wait_for(asyncio.gather(one(), one()), PATIENCE_S)

    threads = [threading.Thread(target=target) for target in (take, take, feed)]
    for thread in threads:
        thread.start()
    asyncio.run(take_on_a_loop())
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert set(Counter(taken).values()) <= {1}
    assert is_cut_off or len(taken) == count
    assert "0 items, <Waiters 0>" in repr(fed.inbox)


def test_its_serializer_is_that_of_the_request() -> None:
    assert Fed("msgpack").inbox.serializer is get_serializer("msgpack")
    with pytest.raises(ValueError, match="unknown serializer"):
        _ = Fed("none").inbox.serializer
