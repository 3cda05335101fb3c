"""What a handler gets for a stream among its arguments: consumed, shared, given up, handed on."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc import errors
from serve_grpc._serve.exceptions import RemoteException, message_from_exception
from serve_grpc.errors import RequestStreamError
from serve_grpc.request_stream import ITEMS_PER_TURN, RequestStream
from serve_grpc.serialization import get_serializer
from tests.unit.inboxes import Fed, of_items
from tests.unit.sessions_loop import PATIENCE_S, until


async def collected(stream: RequestStream) -> list[Any]:
    return [item async for item in stream]


def test_it_is_iterated_on_a_loop_or_in_a_thread() -> None:
    assert asyncio.run(collected(of_items(1, None, "3")[1])) == [1, None, "3"]
    assert list(of_items(1, None, "3")[1]) == [1, None, "3"]


def test_it_is_iterated_once() -> None:
    for first in (aiter, iter):
        _, stream = of_items(1)
        first(stream)
        for second in (aiter, iter):
            with pytest.raises(RuntimeError, match="once"):
                second(stream)


def test_the_iterator_of_either_kind_goes_on_where_it_was_left() -> None:
    async def on_a_loop() -> list[int]:
        items = aiter(of_items(1, 2, 3)[1])
        return [await anext(items), *[item async for item in items]]

    assert asyncio.run(on_a_loop()) == [1, 2, 3]
    items = iter(of_items(1, 2, 3)[1])
    assert [next(items), *items] == [1, 2, 3]


def test_one_item_may_be_taken_before_the_loop_over_the_others() -> None:
    async def on_a_loop() -> list[int]:
        _, stream = of_items(1, 2, 3)
        return [await anext(stream), *await collected(stream)]

    assert asyncio.run(on_a_loop()) == [1, 2, 3]
    _, stream = of_items(1, 2, 3)
    assert [next(stream), *stream] == [1, 2, 3]


def test_it_refuses_to_block_an_event_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="`async for`"):
            next(of_items(1)[1])
        with pytest.raises(RuntimeError, match="`async for`"):
            list(of_items(1)[1])

    asyncio.run(main())


def test_code_of_an_event_loop_may_hand_it_to_a_thread() -> None:
    async def main() -> list[int]:
        return await asyncio.to_thread(list, of_items(1, 2)[1])

    assert asyncio.run(main()) == [1, 2]


def test_a_wait_that_is_given_up_again_and_again_loses_no_item() -> None:
    fed = Fed(window=(10**6, 10**9))
    stream, count = RequestStream(fed.inbox), 300

    def feed() -> None:
        for number in range(count):
            fed.feed(number)
        fed.end()

    async def main() -> list[int]:
        items: list[int] = []
        while True:
            try:
                items.append(await asyncio.wait_for(anext(stream), 0.00005 * (1 + len(items) % 3)))
            except asyncio.TimeoutError:
                continue
            except StopAsyncIteration:
                return items

    thread = threading.Thread(target=feed)
    thread.start()
    assert asyncio.run(main()) == list(range(count))
    thread.join()


def test_tasks_that_share_it_get_each_item_once_and_all_hear_of_the_end() -> None:
    fed = Fed()
    stream = RequestStream(fed.inbox)

    async def worker() -> list[int]:
        items: list[int] = []
        while True:
            try:
                items.append(await anext(stream))
            except StopAsyncIteration:
                return items
            await asyncio.sleep(0)

    async def main() -> list[list[int]]:
        workers = [asyncio.ensure_future(worker()) for _ in range(3)]
        await asyncio.sleep(0)
        for number in range(30):
            fed.feed(number)
            await asyncio.sleep(0)
        fed.end()
        return await asyncio.wait_for(asyncio.gather(*workers), PATIENCE_S)

    each = asyncio.run(main())
    assert sorted(item for items in each for item in items) == list(range(30))


def test_the_callers_error_ends_it_and_is_told_to_all_who_wait() -> None:
    fed = Fed()
    stream = RequestStream(fed.inbox)

    async def main() -> None:
        fed.feed(1)
        assert await anext(stream) == 1
        waiting = [asyncio.ensure_future(anext(stream)) for _ in range(2)]
        await asyncio.sleep(0)
        fed.fail("broken")
        for one in waiting:
            with pytest.raises(RequestStreamError, match="broken") as raised:
                await asyncio.wait_for(one, PATIENCE_S)
            assert type(raised.value.cause) is ValueError
            assert raised.value.__cause__ is raised.value.cause
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())


def test_in_a_thread_the_callers_error_ends_it_as_well() -> None:
    fed = Fed()
    fed.fail("broken")
    stream = RequestStream(fed.inbox)
    with pytest.raises(RequestStreamError, match="broken"):
        next(stream)
    assert list(stream) == []


def test_who_gives_up_while_the_error_is_loaded_still_gets_it() -> None:
    fed = Fed()
    stream, go = RequestStream(fed.inbox), threading.Event()

    def slow_failure() -> BaseException:
        assert go.wait(PATIENCE_S)
        return RequestStreamError("late", cause=ValueError())

    fed.inbox.failure = slow_failure  # type: ignore[method-assign]
    fed.fail()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        go.set()
        with pytest.raises(RequestStreamError, match="late"):
            await anext(stream)

    asyncio.run(main())


def test_closing_it_ends_the_loop_and_wakes_who_waits() -> None:
    fed = Fed()
    stream = RequestStream(fed.inbox)

    async def main() -> None:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, PATIENCE_S)
        fed.feed("late")
        assert await collected(stream) == []

    asyncio.run(main())
    assert fed.told == [(0, 0, True)]
    of_a_thread = RequestStream(Fed().inbox)
    of_a_thread.close()
    assert list(of_a_thread) == []


def test_when_its_call_is_over_tasks_are_cancelled_and_threads_are_told() -> None:
    fed = Fed()
    stream = RequestStream(fed.inbox)

    async def main() -> None:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        fed.inbox.cut_off()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, PATIENCE_S)
        with pytest.raises(asyncio.CancelledError):
            await anext(stream)

    asyncio.run(main())
    with pytest.raises(RequestCancelledError):
        next(stream)

    blocked = Fed()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(next, RequestStream(blocked.inbox))
        until(lambda: "<Waiters 1>" in repr(blocked.inbox))
        blocked.inbox.cut_off()
        with pytest.raises(RequestCancelledError):
            answer.result(PATIENCE_S)


def test_items_that_are_there_leave_other_tasks_a_turn() -> None:
    _, stream = of_items(*range(10 * ITEMS_PER_TURN))

    async def main() -> None:
        task = asyncio.ensure_future(collected(stream))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        assert await task == list(range(10 * ITEMS_PER_TURN))

    asyncio.run(main())


def test_noop_gives_bytes() -> None:
    fed = Fed("noop")
    fed.feed_payload(b"one")
    fed.feed_payload(b"")
    fed.end()
    assert list(RequestStream(fed.inbox)) == [b"one", b""]


def test_one_that_was_handed_on_gives_nothing_here() -> None:
    async def main() -> None:
        fed, stream = of_items(1, 2)
        assert await anext(stream) == 1
        assert stream._hand_on() is fed.inbox
        for again in (stream._hand_on, lambda: aiter(stream), lambda: iter(stream)):
            with pytest.raises(RuntimeError, match="once"):
                again()
        with pytest.raises(RuntimeError, match="passed on"):
            await anext(stream)
        with pytest.raises(RuntimeError, match="passed on"):
            await asyncio.to_thread(next, stream)

    asyncio.run(main())


def test_one_that_is_iterated_is_not_handed_on() -> None:
    _, stream = of_items(1)
    iter(stream)
    with pytest.raises(RuntimeError, match="passed on, once"):
        stream._hand_on()


@pytest.mark.parametrize(
    "attempt", [pickle.dumps, copy.copy, get_serializer("cloudpickle").dump_response]
)
def test_it_travels_only_as_an_argument_itself(attempt: Any) -> None:
    with pytest.raises(TypeError, match="Pass it directly"):
        attempt(RequestStream(Fed().inbox))


def test_its_error_keeps_its_cause_wherever_it_goes() -> None:
    error = RequestStreamError("text", cause=KeyError("mine"), request_id="request")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), str(other), other.request_id) == (type(error), "text", "request")
        assert (type(other.cause), other.cause.args) == (KeyError, ("mine",))
        assert other.__cause__ is other.cause
        assert other.may_have_executed


def test_its_error_is_the_users_once_it_leaves_the_handler() -> None:
    error = RequestStreamError("text", cause=KeyError("mine"))
    message = message_from_exception(error, "method", may_pickle=True, refs=[])
    raised = RemoteException(message, request_id="request", may_unpickle=True).load()
    assert isinstance(raised, RayTaskError)
    assert isinstance(raised, errors.RequestStreamError)
    assert type(raised.cause) is RequestStreamError
    assert type(raised.cause.cause) is KeyError
