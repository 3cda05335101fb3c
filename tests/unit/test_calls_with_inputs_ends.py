"""How calls with streams among their arguments end, and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import logging
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.request_stream import RequestStream
from tests.ray.waiting import eventually_async
from tests.unit.input_calls import (
    PICKLE,
    WINDOW,
    Caller,
    Replica,
    Run,
    kept_objects,
    listed,
    listed_in_thread,
)


def test_items_that_were_under_way_when_the_call_ended_are_dropped(run: Run) -> None:
    async def returns(_: RequestStream) -> str:
        return "done"

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        for value in (1, 2):
            caller.caller.inputs.add(call, 0, InputKind.ITEM, PICKLE.dump_item(value))
        messages = [caller.caller.outbox.take()]
        await eventually_async(lambda: caller.ends == 1)
        stream: Any = caller
        for message in messages:
            replica.dispatcher.on_arrival(stream, caller.session.receive(message))
        (again,) = [caller.call(None)]
        caller.end(again)
        await eventually_async(lambda: caller.ends == 2)

    run(returns, test)


def test_a_cancel_reaches_code_that_waits_for_an_item(run: Run) -> None:
    seen: list[str] = []

    async def waits(items: RequestStream) -> None:
        try:
            await listed(items)
        except asyncio.CancelledError:
            seen.append("cancelled")
            with pytest.raises(asyncio.CancelledError):
                await anext(items)
            raise

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        caller.item(call, 1, 2)
        await eventually_async(lambda: bool(caller.news))
        caller.cancel(call)
        await eventually_async(lambda: seen == ["cancelled"])

    run(waits, test)


@pytest.mark.parametrize("is_deadline", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
def test_code_in_a_thread_that_waits_for_an_item_is_woken(
    run: Run, is_stream: bool, is_deadline: bool
) -> None:
    seen: list[type[BaseException]] = []

    def waits(items: RequestStream) -> Any:
        try:
            return list(items)
        except BaseException as error:
            seen.append(type(error))
            raise

    def waits_in_a_generator(items: RequestStream) -> Iterator[Any]:
        yield waits(items)

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None, is_stream=is_stream)
        caller.item(call, 1, 2)
        await eventually_async(lambda: bool(caller.news))
        if is_deadline:
            replica.expire(call)
        else:
            caller.cancel(call)
        await eventually_async(lambda: seen == [RequestCancelledError])
        await replica.idle()
        assert [error.code for error in caller.errors] == [Error.DEADLINE_EXCEEDED] * is_deadline

    run(waits_in_a_generator if is_stream else waits, test)


def test_a_task_that_the_code_left_behind_is_told_that_the_call_is_over(run: Run) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def leaves(items: RequestStream) -> str:
        tasks.append(asyncio.ensure_future(listed(items)))
        await asyncio.sleep(0)
        return "done"

    async def test(replica: Replica, caller: Caller) -> None:
        caller.call(None)
        await eventually_async(lambda: caller.values == ["done"])
        await eventually_async(lambda: tasks[0].done())
        assert "is over" in str(tasks[0].exception())  # it was not cancelled

    run(leaves, test)


def test_the_end_of_a_session_ends_its_streams(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        for _ in range(3):
            caller.item(caller.call(None), 1)
        await eventually_async(lambda: replica.dispatcher.ongoing() == 3)
        caller.close()
        await replica.idle()
        assert dict(replica.dispatcher.outcomes) == {"CANCELLED": 3}

    run(listed_in_thread, test, slots=3)


def test_items_for_a_request_that_stands_by_are_kept(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        for _ in range(2000):
            replica.dispatcher.admission.standby.on_duration(0.01)
        first, second = caller.call(None), caller.call(None)
        caller.item(second, "kept")
        caller.end(second)
        caller.item(first, "first")
        caller.end(first)
        await eventually_async(lambda: caller.ends == 2 or bool(caller.rejected))
        assert caller.values == [["first"], ["kept"]]

    run(listed, test)


def test_one_that_is_turned_away_takes_nothing(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        first, second = caller.call(None), caller.call(None)
        assert caller.rejected == ["call"]
        caller.item(second, 1)
        caller.end(first)
        await eventually_async(lambda: caller.values == [[]])

    run(listed, test)


def test_one_that_is_cancelled_while_it_stands_by_keeps_nothing(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        for _ in range(2000):
            replica.dispatcher.admission.standby.on_duration(0.01)
        first, second = caller.call(None), caller.call(None)
        caller.item(second, 1)
        waits = replica.running[second]
        caller.cancel(second)
        await eventually_async(lambda: "cut_off, 0 items" in repr(waits.inputs))
        caller.end(first)
        await eventually_async(lambda: caller.values == [[]])

    run(listed, test)


def test_nothing_of_a_call_is_kept_after_its_end(run: Run) -> None:
    seen: list[weakref.ref[Any]] = []
    before = kept_objects()  # by tests that failed, whose frames pytest keeps

    async def reads(items: RequestStream) -> int:
        seen.append(weakref.ref(items))
        seen.append(weakref.ref(items._inbox))
        return len(await listed(items))

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        caller.item(call, 1)
        caller.end(call)
        await eventually_async(lambda: caller.values == [1])
        await replica.idle()
        await eventually_async(lambda: kept_objects() <= before)
        assert [ref() for ref in seen] == [None, None]

    run(reads, test)


async def reads_some(items: RequestStream[int], plan: int) -> int:
    """Reads `plan` items, closes the stream if that is odd, and goes on for a while."""
    count = 0
    async for _ in items:
        count += 1
        if count == plan:
            break
    if plan % 2:
        await items.aclose()
    await asyncio.sleep(0.001 * (plan % 3))
    return count


def reads_some_in_thread(items: RequestStream[int], plan: int) -> int:
    count = 0
    for _ in items:
        count += 1
        if count == plan:
            break
    if plan % 2:
        items.close()
    return count


@pytest.mark.parametrize("code", [reads_some, reads_some_in_thread], ids=["async", "thread"])
@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_things_happen_slots_come_back_and_nothing_is_kept(
    run: Run, code: Callable[..., Any], seed: int
) -> None:
    dice = random.Random(seed)
    before = kept_objects()

    async def one(replica: Replica, caller: Caller) -> None:
        call = caller.call(None, dice.randrange(8))
        left = WINDOW[0]
        for _ in range(dice.randrange(6)):
            count = dice.randrange(min(3, left + 1))
            left -= count
            caller.item(call, *range(count))
            await asyncio.sleep(dice.choice((0, 0, 0.001)))
        end = dice.choice(("end", "fail", "cancel", "expire"))
        if end == "end":
            caller.end(call)
        elif end == "fail":
            caller.fail(call, KeyError("mine"))
        elif end == "cancel":
            caller.cancel(call)
        elif call in replica.running:
            replica.expire(call)

    async def test(replica: Replica, caller: Caller) -> None:
        for _ in range(10):
            await asyncio.gather(*(one(replica, caller) for _ in range(8)))
        await replica.idle()
        await eventually_async(lambda: kept_objects() <= before)

    logging.disable()  # what pytest captures keeps tracebacks, and all that is in their frames
    try:
        run(code, test, slots=6)
    finally:
        logging.disable(logging.NOTSET)
