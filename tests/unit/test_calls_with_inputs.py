"""Calls with streams among their arguments, from a caller's session to the user's code and back.

Both session machines, the dispatcher, the executor and Serve's semaphore are real; only the carrier
is played. The code runs on the loop of the dispatcher, or on a loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray import serve

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException
from serve_grpc.errors import RequestStreamError
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.request_stream import RequestStream
from tests.ray.waiting import eventually_async
from tests.unit.input_calls import (
    KINDS,
    PICKLE,
    WINDOW,
    Caller,
    Replica,
    Run,
    generated,
    generated_in_thread,
    listed,
    listed_in_thread,
)


@KINDS
def test_all_kinds_of_code_read_to_the_end(run: Run, code: Callable[..., Any]) -> None:
    is_stream = code in (generated, generated_in_thread)

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None, is_stream=is_stream)
        caller.item(call, 1, 2)
        caller.item(call, 3)
        if is_stream:
            await eventually_async(lambda: caller.values == [1, 2, 3])
        else:
            await asyncio.sleep(0)
            assert caller.ends == 0
        assert replica.dispatcher.ongoing() == 1
        caller.end(call)
        await eventually_async(lambda: caller.ends == 1)
        assert caller.values == ([1, 2, 3] if is_stream else [[1, 2, 3]])
        assert not caller.is_closed
        size = len(PICKLE.dump_item(1))
        counters = caller.counters
        assert (counters.inputs_received, counters.input_bytes_received) == (3, 3 * size)

    run(code, test)


@KINDS
def test_credit_comes_back_as_the_code_reads(run: Run, code: Callable[..., Any]) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None, is_stream=code in (generated, generated_in_thread))
        left, sent = WINDOW[0], 0
        while sent < 10 * WINDOW[0]:
            await eventually_async(
                lambda sent=sent: WINDOW[0] + sum(news.items for news in caller.news) > sent
            )
            left = WINDOW[0] + sum(news.items for news in caller.news) - sent
            caller.item(call, *range(sent, sent + left))
            sent += left
        caller.end(call)
        await eventually_async(lambda: caller.ends == 1)

    run(code, test)


def test_code_that_does_not_read_gives_no_credit(run: Run) -> None:
    go = asyncio.Event()
    loops = []

    async def waits(items: RequestStream) -> list[Any]:
        loops.append(asyncio.get_running_loop())
        await go.wait()
        return await listed(items)

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        caller.item(call, *range(WINDOW[0]))
        await eventually_async(lambda: bool(loops))
        for _ in range(10):
            await asyncio.sleep(0)
        assert caller.news == []
        caller.end(call)
        loops[0].call_soon_threadsafe(go.set)
        await eventually_async(lambda: caller.values == [[0, 1, 2, 3]])

    run(waits, test)


def test_items_may_come_in_the_message_of_their_request(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        say, caller.say = caller.say, lambda: None  # type: ignore[method-assign]
        call = caller.call(None)
        caller.item(call, 1, 2)
        caller.end(call)
        say()
        await eventually_async(lambda: caller.values == [[1, 2]])

    run(listed, test)


def test_several_inputs_by_position_and_by_name(run: Run) -> None:
    async def zipped(a: Any, first: RequestStream, b: Any, *, second: RequestStream) -> list[Any]:
        return [a, b, [(x, await anext(second)) async for x in first]]

    async def test(replica: Replica, caller: Caller) -> None:
        places = (InputPlace(1, ""), InputPlace(0, "second"))
        call = caller.call("a", None, None, inputs=places)
        caller.item(call, 1, 2, number=0)
        caller.end(call, 0)
        caller.item(call, "x", "y", number=1)
        await eventually_async(lambda: caller.values == [["a", None, [(1, "x"), (2, "y")]]])

    run(zipped, test)


def test_noop_gives_bytes(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(serializer="noop")
        caller.caller.inputs.add(call, 0, InputKind.ITEM, b"bytes")
        caller.end(call)
        await eventually_async(lambda: caller.values == [[b"bytes"]])

    run(listed, test)


def test_the_callers_exception_is_an_error_of_the_stream_and_not_of_the_call(run: Run) -> None:
    async def survives(items: RequestStream) -> list[Any]:
        seen = []
        try:
            async for item in items:
                seen.append(item)
        except RequestStreamError as error:
            return [seen, type(error.cause), error.cause.args, error.request_id]
        raise AssertionError("it ended well")

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        caller.item(call, 1)
        caller.fail(call, KeyError("mine"))
        await eventually_async(lambda: caller.values == [[[1], KeyError, ("mine",), "call"]])

    run(survives, test)


@pytest.mark.parametrize("code", [listed, listed_in_thread], ids=["async", "thread"])
def test_an_error_that_the_code_lets_out_is_the_calls(run: Run, code: Callable[..., Any]) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        caller.fail(call, KeyError("mine"))
        await eventually_async(lambda: bool(caller.errors))
        remote = RemoteException(caller.errors[0], request_id="", may_unpickle=True).load()
        assert isinstance(remote, RequestStreamError)
        assert type(remote.cause.cause) is KeyError

    run(code, test)


def test_code_that_closes_it_goes_on_and_its_caller_is_told(run: Run) -> None:
    async def first_only(items: RequestStream) -> AsyncIterator[Any]:
        yield await anext(items)
        await items.aclose()
        yield "closed"
        yield await listed(items)

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None, is_stream=True)
        caller.item(call, 1, 2)
        await eventually_async(lambda: caller.ends == 1)
        assert caller.values == [1, "closed", []]
        assert [(n.call, n.number, n.is_closed) for n in caller.news] == [("call", 0, True)]

    run(first_only, test)


@pytest.mark.parametrize("is_error", [False, True])
def test_code_that_returns_before_the_end_leaves_nothing(run: Run, is_error: bool) -> None:
    kept: list[RequestStream] = []

    async def returns(items: RequestStream) -> str:
        await anext(items)
        kept.append(items)
        if is_error:
            raise ValueError
        return "done"

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        caller.item(call, 1, 2, 3)
        await eventually_async(lambda: caller.ends == 1)
        await replica.idle()
        caller.item(call, 4)  # dropped here, for the call is over; as the next is, at the replica
        assert "over, 0 items" in repr(kept[0])
        with pytest.raises(RuntimeError, match="is over"):
            await anext(kept[0])

    run(returns, test)


@pytest.mark.parametrize("name", ["batched", "streamed"])
def test_a_batched_method_takes_no_streams(run: Run, name: str) -> None:
    calls: list[Any] = []

    @serve.batch
    async def batched(items: list[Any]) -> list[Any]:
        calls.append(items)
        return items

    @serve.batch(max_batch_size=2)
    async def streamed(items: list[Any]) -> AsyncIterator[list[Any]]:
        calls.append(items)
        yield items

    async def test(replica: Replica, caller: Caller) -> None:
        caller.call(None, is_stream=name == "streamed")
        await eventually_async(lambda: bool(caller.errors))
        (error,) = caller.errors
        assert (error.code, error.type_name) == (Error.USER_EXCEPTION, "builtins.TypeError")
        assert "@serve.batch" in error.message
        assert calls == []

    run({"batched": batched, "streamed": streamed}[name], test)


def test_a_place_that_is_none_is_the_callers_error(run: Run) -> None:
    async def test(replica: Replica, caller: Caller) -> None:
        caller.call("taken")
        await eventually_async(lambda: bool(caller.errors))
        (error,) = caller.errors
        assert (error.code, error.may_have_executed) == (Error.INVALID_REQUEST, False)
        assert "position 0" in error.message

    run(listed, test)


def test_code_on_the_loop_that_would_block_it_is_refused(run: Run) -> None:
    """With RAY_SERVE_RUN_SYNC_IN_THREADPOOL=0."""

    def blocks(items: RequestStream) -> list[Any]:
        return list(items)

    async def by_serves_rules(function: Any, args: Any, kwargs: Any, is_streaming: bool) -> Any:
        return function(*args, **kwargs), is_streaming

    async def test(replica: Replica, caller: Caller) -> None:
        replica.adapter._user_code._run_sync_methods_in_threadpool = False
        replica.adapter._user_code._call_func_or_gen = by_serves_rules
        caller.call(None)
        await eventually_async(lambda: bool(caller.errors))
        assert caller.errors[0].type_name == "builtins.RuntimeError"
        assert "would block the event loop" in caller.errors[0].message

    run(blocks, test)


def test_an_item_over_the_limit_fails_the_stream_alone(run: Run) -> None:
    async def survives(items: RequestStream) -> Any:
        try:
            return await listed(items)
        except RequestStreamError as error:
            return type(error.cause).__name__, error.cause.direction

    async def test(replica: Replica, caller: Caller) -> None:
        caller.caller._max_message_bytes = 2**30
        call = caller.call(None)
        caller.item(call, b"x" * (2 * 1024 * 1024))
        await eventually_async(lambda: caller.values == [("MessageTooLargeError", "request")])

    run(survives, test)
