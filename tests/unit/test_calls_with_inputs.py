"""Calls with streams among their arguments, from a caller's session to the user's code and back.

Both session machines, the dispatcher, the executor and Serve's semaphore are real; only the carrier
is played. The code runs on the loop of the dispatcher, or on a loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import random
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RequestCancelledError

from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException, message_from_exception
from serve_grpc.config import Settings
from serve_grpc.errors import RequestStreamError
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind, InputNews
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.replica.invocation import CancelReason, Invocation
from serve_grpc.request_stream import RequestStream
from serve_grpc.serialization import get_serializer
from serve_grpc.streams.inbox import Inbox
from tests.ray.waiting import eventually_async
from tests.unit.sessions import STREAM, UNARY, fields, open_pair
from tests.unit.test_dispatcher import Line

PICKLE = get_serializer("pickle")
WINDOW = (4, 100_000)
FIRST = (InputPlace(0, ""),)


class Caller(Line):
    """A caller's session, whose calls have inputs. Items are sent by hand, within the credit."""

    def __init__(self, dispatcher: ReplicaDispatcher) -> None:
        super().__init__(dispatcher)
        self.caller, self.session = open_pair(input_credit=WINDOW)

    def call(
        self,
        *args: Any,
        inputs: tuple[InputPlace, ...] = FIRST,
        is_stream: bool = False,
        serializer: str = "pickle",
        kwargs: dict[str, Any] | None = None,
        **changes: Any,
    ) -> int:
        """Send a request that is named "call", and its inputs."""
        envelope = (STREAM if is_stream else UNARY)._replace(
            request_serializer=serializer, response_serializer="pickle"
        )
        payload = b"" if serializer == "noop" else PICKLE.dump_request(args, kwargs or {})
        request: dict[str, Any] = {"inputs": inputs, "envelope": envelope, **changes}
        (call_id,) = self.send("call", payload=payload, **request)
        return call_id

    def send(self, *names: str, payload: bytes = b"", **changes: Any) -> list[int]:
        """As of `Line`, with a payload."""
        ids = [
            self.caller.request(name, fields(payload, **{"request_id": name, **changes}))
            for name in names
        ]
        self.say()
        return ids

    def item(self, call_id: int, *values: Any, number: int = 0) -> None:
        """So many items, in one message."""
        for value in values:
            self.caller.send_input(call_id, number, InputKind.ITEM, PICKLE.dump_item(value))
        self.say()

    def end(self, call_id: int, number: int = 0) -> None:
        self.caller.send_input(call_id, number, InputKind.END)
        self.say()

    def fail(self, call_id: int, error: Exception) -> None:
        message = message_from_exception(error, "generator", may_pickle=True, refs=[])
        self.caller.send_input(call_id, 0, InputKind.ERROR, b"", message)
        self.say()

    @property
    def news(self) -> list[InputNews]:
        return [news for received in self.heard for news in received.inputs]

    @property
    def is_closed(self) -> bool:
        return any(news.is_closed for news in self.news)

    @property
    def values(self) -> list[Any]:
        """Of results and items, in order."""
        kinds = (CallEventKind.RESULT, CallEventKind.ITEM)
        events = [event for received in self.heard for event in received.events]
        return [PICKLE.load_response(e.payload) for e in events if e.kind in kinds]

    @property
    def ends(self) -> int:
        """How many calls have ended, well or not."""
        kinds = (CallEventKind.RESULT, CallEventKind.END, CallEventKind.ERROR)
        return sum(e.kind in kinds for received in self.heard for e in received.events)


class Replica:
    """A replica whose one method is `code`.

    Args:
        code: Of any kind.
        user_loop: Where it runs; None for the running loop.
        changes: Of its settings.
    """

    def __init__(
        self, code: Callable[..., Any], user_loop: asyncio.AbstractEventLoop | None, slots: int = 1
    ) -> None:
        self.adapter = new_replica_adapter(code, max_ongoing_requests=slots)
        if user_loop is not None:
            self.adapter.user_loop = user_loop
        settings = dataclasses.replace(
            Settings(), stream_window_items=WINDOW[0], stream_window_bytes=WINDOW[1]
        )
        self.dispatcher = ReplicaDispatcher(self.adapter, settings)
        self.caller = Caller(self.dispatcher)

    @property
    def running(self) -> dict[int, Invocation]:
        """What runs, or stands by, for the caller."""
        stream: Any = self.caller
        return self.dispatcher._replies[stream].running

    def expire(self, call_id: int) -> None:
        """The deadline of a call passes."""
        cancel = self.dispatcher._executor.cancel
        self.dispatcher._to_user.run(cancel, self.running[call_id], CancelReason.DEADLINE)

    async def idle(self) -> None:
        """Return when all slots are free again, and nothing is left."""
        await eventually_async(lambda: self.dispatcher.ongoing() == 0)
        assert "0 running" in repr(self.dispatcher)


Test = Callable[[Replica, Caller], Awaitable[None]]


@pytest.fixture(params=["one-loop", "two-loops"])
def user_loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop | None]:
    """None, or a loop in a thread of its own."""
    if request.param == "one-loop":
        yield None
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(cancel_tasks(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def run(user_loop: asyncio.AbstractEventLoop | None) -> Callable[..., None]:
    """Runs a test with a replica of some code, and looks that it gave back all slots."""

    def run_it(code: Callable[..., Any], test: Test, slots: int = 1) -> None:
        async def main() -> None:
            replica = Replica(code, user_loop, slots)
            try:
                await asyncio.wait_for(test(replica, replica.caller), 30)
                await replica.idle()
            finally:
                await cancel_tasks()
                replica.adapter._access_log.close()

        asyncio.run(main())

    return run_it


Run = Callable[..., None]


async def listed(items: RequestStream) -> list[Any]:
    return [item async for item in items]


async def generated(items: RequestStream) -> AsyncIterator[Any]:
    async for item in items:
        yield item


def listed_in_thread(items: RequestStream) -> list[Any]:
    assert threading.current_thread() is not threading.main_thread()
    return list(items)


def generated_in_thread(items: RequestStream) -> Iterator[Any]:
    yield from items


KINDS = pytest.mark.parametrize(
    "code", [listed, generated, listed_in_thread, generated_in_thread], ids=lambda f: f.__name__
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
        caller.caller.send_input(call, 0, InputKind.ITEM, b"bytes")
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


def test_items_that_were_under_way_when_the_call_ended_are_dropped(run: Run) -> None:
    async def returns(_: RequestStream) -> str:
        return "done"

    async def test(replica: Replica, caller: Caller) -> None:
        call = caller.call(None)
        for value in (1, 2):
            caller.caller.send_input(call, 0, InputKind.ITEM, PICKLE.dump_item(value))
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


def kept_objects() -> int:
    """How many requests and inputs there are in this process."""
    gc.collect()
    return sum(type(each) in (Invocation, Inbox) for each in gc.get_objects())


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
