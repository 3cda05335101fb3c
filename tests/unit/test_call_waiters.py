"""Who waits for a call: any number of tasks on any loops, and threads, and what giving up means."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable

import pytest

from serve_grpc.caller.call import Call
from serve_grpc.caller.outcomes import Raised, Result
from tests.unit.sessions_loop import PATIENCE_S, Cancelled, TransportLoop, until

VALUE = pickle.dumps("value")


class Waiting:
    """A thread that waits for a call in its own way and keeps what it got."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.got: list[object] = []
        self._thread = threading.Thread(target=lambda: self.got.append(wait()))
        self._thread.start()

    def join(self) -> object:
        self._thread.join(PATIENCE_S)
        assert self.got, "it still waits"
        return self.got[0]


def in_a_loop(wait: Callable[[], Awaitable[object]]) -> Waiting:
    async def main() -> object:
        return await wait()

    return Waiting(lambda: asyncio.run(main()))


def test_tasks_of_several_loops_and_threads_all_hear_of_the_end(transport: TransportLoop) -> None:
    call = transport.new_call()
    on_transport = asyncio.run_coroutine_threadsafe(call.wait_done(), transport.loop)
    waiting = [in_a_loop(call.wait_done), in_a_loop(call.wait_done)]
    waiting += [Waiting(lambda: call.wait_done_blocking(None)) for _ in range(2)]
    until(lambda: len(call._waiters) == 5)
    transport.run(call.end, Result(VALUE))
    assert on_transport.result(PATIENCE_S) is None
    assert [one.join() for one in waiting] == [None, None, True, True]
    assert call.result() == "value"
    assert (call.awaiting, call._waiters) == (0, [])


def test_a_call_that_is_over_is_not_waited_for(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.end, Raised(ValueError()))
    assert call.wait_done_blocking(0)
    with pytest.raises(StopIteration):
        call.wait_done().send(None)


def test_a_thread_may_stop_waiting_and_the_call_goes_on(transport: TransportLoop) -> None:
    call = transport.new_call()
    assert not call.wait_done_blocking(0.001)
    transport.run(lambda: None)
    assert (transport.cancelled, call.is_cancelled) == ([], False)
    transport.run(call.end, Result(VALUE))
    assert call.wait_done_blocking(0.001)
    assert call.result() == "value"


async def start_waiting(wait: Callable[[], Awaitable[object]], count: int) -> list[asyncio.Task]:
    tasks = [asyncio.ensure_future(wait()) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def cancel(task: asyncio.Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelling_the_last_task_that_waits_cancels_the_call(transport: TransportLoop) -> None:
    call = transport.new_call()
    seen: list[bool] = []

    async def main() -> None:
        for task in await start_waiting(call.wait_done, 3):
            await cancel(task)
            seen.append(call.is_cancelled)

    asyncio.run(main())
    transport.run(lambda: None)
    assert seen == [False, False, True]
    assert transport.cancelled == [call]


def test_one_task_that_stops_waiting_leaves_the_others_their_result(
    transport: TransportLoop,
) -> None:
    call = transport.new_call()

    async def main() -> str:
        first, second = await start_waiting(call.wait_done, 2)
        await cancel(first)
        call.mailbox.post(call.end, Result(VALUE))
        await second
        return call.result()

    assert asyncio.run(main()) == "value"
    assert transport.cancelled == []


def test_a_task_on_another_loop_keeps_the_call_alive(transport: TransportLoop) -> None:
    call = transport.new_call()
    other = in_a_loop(call.wait_done)
    until(lambda: call.awaiting == 1)

    async def main() -> None:
        (task,) = await start_waiting(call.wait_done, 1)
        await cancel(task)

    asyncio.run(main())
    assert not call.is_cancelled
    transport.run(call.end, Result(VALUE))
    assert other.join() is None


def test_cancelling_a_wait_is_not_swallowed_when_the_result_comes_at_the_same_time(
    transport: TransportLoop,
) -> None:
    call = transport.new_call()

    async def main() -> None:
        (task,) = await start_waiting(call.wait_done, 1)
        transport.run(call.end, Result(VALUE))
        await cancel(task)

    asyncio.run(main())
    assert (call.result(), transport.cancelled) == ("value", [])


def test_waits_that_were_given_up_leave_nothing_behind(transport: TransportLoop) -> None:
    call, stream = transport.new_call(), transport.new_stream()
    transport.is_deaf = True  # the calls stay open

    async def main() -> None:
        for wait in (call.wait_done, stream.wait_item):
            for task in await start_waiting(wait, 5):
                await cancel(task)

    asyncio.run(main())
    for _ in range(5):
        assert not call.wait_done_blocking(0.0001)
    assert (call._waiters, stream._waiters, call.awaiting) == ([], [], 0)


def test_a_waiter_whose_loop_was_closed_does_not_keep_the_others_waiting(
    transport: TransportLoop,
) -> None:
    call = transport.new_call()
    loop = asyncio.new_event_loop()
    task = loop.create_task(call.wait_done())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    waiting = Waiting(lambda: call.wait_done_blocking(None))
    until(lambda: len(call._waiters) == 2)
    transport.run(call.end, Result(VALUE))
    assert waiting.join() is True
    task._log_destroy_pending = False
    assert not task.done()


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_a_consumer_hears_of_an_item_and_of_the_end(transport: TransportLoop, kind: str) -> None:
    def wait(call: Call) -> Waiting:
        if kind == "loop":
            return in_a_loop(call.wait_item)
        return Waiting(call.wait_item_blocking)

    call = transport.new_stream()
    waiting = wait(call)
    until(lambda: call._waiters)
    transport.run(call.add_item, VALUE)
    assert waiting.join() is True
    assert call.take_item() == "value"
    waiting = wait(call)
    until(lambda: call._waiters)
    transport.run(call.end, Result(b""))
    assert waiting.join() is False


def test_a_consumer_that_stops_waiting_for_an_item_cancels_the_stream(
    transport: TransportLoop,
) -> None:
    call = transport.new_stream()

    async def main() -> None:
        (task,) = await start_waiting(call.wait_item, 1)
        await cancel(task)

    asyncio.run(main())
    transport.run(lambda: None)
    assert transport.cancelled == [call]
    with pytest.raises(Cancelled):
        call.result()


def test_no_item_is_missed_between_a_producer_and_a_consumer_that_race(
    transport: TransportLoop,
) -> None:
    call = transport.new_stream()
    count = 2000

    async def consume() -> list[int]:
        taken = []
        while await call.wait_item():
            taken.append(call.take_item())
        return taken

    waiting = in_a_loop(consume)
    for number in range(count):
        call.mailbox.post(call.add_item, pickle.dumps(number))
    call.mailbox.post(call.end, Result(b""))
    assert waiting.join() == list(range(count))
    assert sum(items for items, _ in transport.grants) <= count
