"""Streams as arguments on a real Serve, over each carrier: generators, responses and streams that a
handler has itself; read, left, failed, handed on, and whatever ends the call under them.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RequestCancelledError

import serve_grpc
from serve_grpc.config import settings
from serve_grpc.errors import (
    DeadlineExceededError,
    ReplicaDiedError,
    RequestStreamError,
    SerializationError,
    ServeGrpcError,
)
from tests.ray.apps.inputs import Reader, Refusal
from tests.ray.apps.routed import AnyReplica
from tests.ray.carriers import CARRIERS, carriers_of, options_over
from tests.ray.waiting import eventually, eventually_async

OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 1000,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 1,
    "ray_actor_options": {"num_cpus": 0.01},
}
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


@pytest.fixture(scope="module", params=CARRIERS)
def reader(request, deploy):
    """A chain of three, over this carrier; the handle is of the first."""
    options = options_over(request.param, OPTIONS)
    chain = None
    for name in ("Last", "Middle", "First"):
        bound = serve_grpc.deployment(name=name, **options)(Reader)
        chain = bound.bind(chain) if chain is not None else bound.bind()
    handle = deploy(chain, f"inputs-{request.param}")
    assert handle.has_inner.remote().result(timeout_s=60)
    assert carriers_of(handle) == [request.param]
    return handle


class Feed:
    """Generators of both kinds, and what became of them.

    Attributes:
        made: How many items.
        ends: How each of them ended: "end", or the class of what was raised where it paused.
        places: Threads and context variables that they ran in.
    """

    def __init__(self, number: int = 10**9, item: Any = None, fails: bool = False) -> None:
        self.number, self.item, self.fails = number, item, fails
        self.made = 0
        self.ends: list[str] = []
        self.places: set[tuple[int, str]] = set()

    def _next(self) -> Any:
        self.places.add((threading.get_ident(), WHO.get()))
        self.made += 1
        return self.made - 1 if self.item is None else self.item

    async def on_loop(self) -> AsyncIterator[Any]:
        try:
            for _ in range(self.number):
                await asyncio.sleep(0)
                yield self._next()
            if self.fails:
                raise Refusal("no more")
            self.ends.append("end")
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        finally:
            self.places.add((threading.get_ident(), WHO.get()))

    def in_thread(self) -> Iterator[Any]:
        try:
            for _ in range(self.number):
                yield self._next()
            if self.fails:
                raise Refusal("no more")
            self.ends.append("end")
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        finally:
            self.places.add((threading.get_ident(), WHO.get()))


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def until_noted(reader: Any, key: str, note: str) -> None:
    """Return once the handler has noted this."""

    def is_noted() -> bool:
        return bool(reader.note.remote(key).result(timeout_s=30) == note)

    await asyncio.to_thread(eventually, is_noted)


# ------------------------------------------------------------ reading


@pytest.mark.parametrize("method", ["__call__", "in_thread"])
@pytest.mark.parametrize("kind", ["on_loop", "in_thread"])
def test_a_generator_is_read_where_it_is_an_argument(reader, method, kind):
    feed = Feed(1000)

    async def main():
        WHO.set("the caller")
        response = reader.options(method_name=method).remote(getattr(feed, kind)())
        WHO.set("somebody else")
        return await response, threading.get_ident()

    items, thread = run(main())
    assert items == list(range(1000))
    assert feed.ends == ["end"]
    [(where, who)] = feed.places
    assert who == "the caller"
    assert (where == thread) is (kind == "on_loop")


def test_a_plain_generator_is_read_for_a_caller_without_a_loop(reader):
    assert reader.remote(iter_of(range(500))).result(timeout_s=30) == list(range(500))
    echo = reader.options(method_name="echo", stream=True)
    assert list(echo.remote(iter_of("abc"))) == ["a", "b", "c"]


def iter_of(values: Any) -> Iterator[Any]:
    yield from values


@pytest.mark.parametrize("method", ["echo", "echo_in_thread"])
def test_items_go_both_ways_at_a_time(reader, method):
    async def main():
        said: asyncio.Queue[int] = asyncio.Queue()

        async def questions() -> AsyncIterator[int]:
            while True:
                yield await said.get()

        stream = reader.options(method_name=method, stream=True).remote(questions())
        for number in range(50):  # each answer before the next question
            said.put_nowait(number)
            assert await stream.__anext__() == number
        await stream.aclose()

    run(main())


def test_several_inputs_by_position_and_by_name(reader):
    async def main():
        args = Feed(3).on_loop(), 7, Feed(2).in_thread()
        response = reader.all.remote(*args, last=Feed(1).on_loop(), plain="x")
        return await response

    assert run(main()) == [[[0, 1, 2], 7, [0, 1]], {"last": [0], "plain": "x"}]


def test_a_response_beside_a_stream_is_waited_for(reader):
    response = reader.remote(iter_of([1, 2]))
    got = reader.all.remote(iter_of([3]), response).result(timeout_s=30)
    assert got == [[[3], [1, 2]], {}]


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson"])
def test_every_serializer_carries_items(reader, name):
    handle = reader.options(request_serialization=name, response_serialization=name)
    assert handle.all.remote(iter_of(range(5)), a=iter_of("xy"), b=1).result(timeout_s=30) == [
        [[0, 1, 2, 3, 4]],
        {"a": ["x", "y"], "b": 1},
    ]


def test_noop_carries_bytes_and_nothing_else(reader):
    handle = reader.options(request_serialization="noop", response_serialization="noop")
    assert handle.first_bytes.remote(iter_of([b"1", b"2"])).result(timeout_s=30) == b"1,2"
    with pytest.raises(SerializationError):
        handle.first_bytes.remote(iter_of([b"1"]), b"2").result(timeout_s=30)
    with pytest.raises(Exception, match="only bytes pass"):
        handle.first_bytes.remote(iter_of([1])).result(timeout_s=30)


def test_large_items_arrive_whole_and_are_bounded(reader):
    feed = Feed(20, item=b"x" * 3_000_000)
    assert reader.length.remote(feed.in_thread()).result(timeout_s=60) == 60_000_000


def test_many_uploads_at_a_time(reader):
    async def main():
        responses = [reader.remote(Feed(20).on_loop()) for _ in range(200)]
        assert await asyncio.gather(*responses) == [list(range(20))] * 200
        responses = [reader.remote(Feed(20).in_thread()) for _ in range(200)]
        assert await asyncio.gather(*responses) == [list(range(20))] * 200

    run(main())
    eventually(lambda: not [t for t in threading.enumerate() if "serve_grpc-input" in t.name])


def test_an_empty_stream_is_empty(reader):
    assert reader.remote(iter_of(())).result(timeout_s=30) == []


# ------------------------------------------------------------ handing on


def test_a_response_generator_is_an_argument(reader):
    async def main():
        echo = reader.options(method_name="echo", stream=True)
        stream = echo.remote(echo.remote(echo.remote(Feed(700).on_loop())))
        return [item async for item in stream]

    assert run(main()) == list(range(700))


@pytest.mark.parametrize("method", ["pass_on", "wrapped"])
def test_a_stream_is_handed_on_through_the_chain(reader, method):
    feed = Feed(700)
    stream = reader.options(method_name=method, stream=True).remote(feed.in_thread())
    assert list(stream) == list(range(700))
    assert feed.ends == ["end"]


def test_large_items_are_handed_on(reader):
    stream = reader.options(method_name="pass_on", stream=True).remote(
        iter_of(bytes([i]) * 1_000_000 for i in range(20))
    )
    assert [(len(item), item[0]) for item in stream] == [(1_000_000, i) for i in range(20)]


def test_items_are_loaded_where_serializers_differ(reader):
    echo = reader.options(method_name="echo", stream=True)
    first = echo.options(response_serialization="msgpack").remote(iter_of([[1], [2]]))
    assert list(echo.remote(first)) == [[1], [2]]


@pytest.mark.parametrize("is_async", [True, False])
def test_a_response_by_reference_is_an_argument(reader, is_async):
    source = reader.options(_by_reference=True, stream=True, method_name="count")

    async def main():
        return await reader.remote(source.remote(20))

    got = run(main()) if is_async else reader.remote(source.remote(20)).result(timeout_s=30)
    assert got == list(range(20))


def test_the_last_consumer_of_a_chain_pauses_the_first_producer(reader, key):
    window = settings.stream_window_items
    feed = Feed()
    stream = reader.options(method_name="pass_on", stream=True).remote(feed.in_thread())
    assert next(stream) == 0

    def has_stopped():
        before = feed.made
        time.sleep(0.3)
        return before if feed.made == before else 0

    # Two windows for each of three hops there and back, and what is in a hand of each.
    assert eventually(has_stopped, timeout_s=30) <= 6 * (window + 4)
    stream.cancel()
    eventually(lambda: feed.ends)
    assert feed.ends == ["GeneratorExit"]


@pytest.mark.parametrize("method", ["values", "pass_on_values"])
def test_object_refs_in_items_arrive_and_are_held(reader, method):
    refs = ([ray.put(f"value {i}")] for i in range(20))
    got = getattr(reader, method).remote(refs).result(timeout_s=30)
    assert got == [f"value {i}" for i in range(20)]


# ------------------------------------------------------------ errors


@pytest.mark.parametrize("kind", ["on_loop", "in_thread"])
def test_what_the_generator_raises_arrives_as_the_cause(reader, kind):
    async def main():
        return await reader.caught.remote(getattr(Feed(3, fails=True), kind)())

    assert run(main()) == ([0, 1, 2], "RequestStreamError", "Refusal", "no more")


def test_an_error_that_the_handler_lets_through_is_the_calls(reader):
    with pytest.raises(RequestStreamError) as raised:
        reader.remote(Feed(3, fails=True).in_thread()).result(timeout_s=30)
    cause = raised.value.cause
    assert isinstance(cause, RequestStreamError)
    assert isinstance(cause.cause, Refusal)


def test_an_error_goes_through_a_chain(reader):
    stream = reader.options(method_name="pass_on", stream=True).remote(
        Feed(3, fails=True).in_thread()
    )
    taken: list[int] = []
    with pytest.raises(RequestStreamError):
        taken.extend(stream)
    assert taken == [0, 1, 2]


def test_an_item_that_cannot_travel_is_an_error_of_the_stream(reader):
    got = reader.caught.remote(iter_of([1, sys._getframe()])).result(timeout_s=30)
    assert got[:3] == ([1], "RequestStreamError", "SerializationError")
    got = reader.caught.remote(iter_of([1, b"x" * 5_000_000])).result(timeout_s=30)
    assert got[:3] == ([1], "RequestStreamError", "MessageTooLargeError")


# ------------------------------------------------------------ the handler stops early


@pytest.mark.parametrize("kind", ["on_loop", "in_thread"])
def test_a_handler_that_returns_early_closes_the_generator(reader, kind):
    feed = Feed()

    async def main():
        assert await reader.first.remote(getattr(feed, kind)(), 3) == [0, 1, 2]
        await eventually_async(lambda: feed.ends)
        made = feed.made
        await asyncio.sleep(0.1)
        assert (feed.made, feed.ends) == (made, ["GeneratorExit"])
        assert len(feed.places) == 1

    run(main())


def test_a_handler_that_fails_closes_the_generator(reader):
    feed = Feed()
    with pytest.raises(ValueError, match="enough"):
        reader.fail.remote(feed.in_thread()).result(timeout_s=30)
    eventually(lambda: feed.ends)
    assert feed.ends == ["GeneratorExit"]


def test_a_handler_that_closes_its_stream_closes_the_generator_at_once(reader, key):
    feed = Feed()
    response = reader.close_and_hold.remote(feed.in_thread(), key)
    eventually(lambda: feed.ends)
    assert feed.ends == ["GeneratorExit"]
    reader.release.remote(key).result(timeout_s=30)
    assert response.result(timeout_s=30) == key


def test_a_handler_that_closes_what_it_was_handed_on_closes_the_first_generator(reader):
    feed = Feed()
    stream = reader.options(method_name="pass_on", stream=True).remote(feed.in_thread())
    assert next(stream) == 0
    stream.close()
    eventually(lambda: feed.ends)
    assert feed.ends == ["GeneratorExit"]


# ------------------------------------------------------------ back-pressure


@pytest.mark.parametrize("kind", ["on_loop", "in_thread"])
@pytest.mark.parametrize("size", [0, 20_000])
def test_a_handler_that_does_not_read_pauses_the_generator(reader, key, kind, size):
    most = settings.stream_window_bytes // size + 1 if size else settings.stream_window_items
    feed = Feed(2000, item=b"x" * size if size else None)

    async def main():
        response = reader.hold.remote(getattr(feed, kind)(), key)
        await eventually_async(lambda: feed.made >= most)
        await asyncio.sleep(0.3)
        assert feed.made <= most + 1
        assert await reader.note.remote(key) == "running"
        await reader.release.remote(key)
        assert await response == 2000

    run(main())


# ------------------------------------------------------------ the end of the call


@pytest.mark.parametrize("kind", ["on_loop", "in_thread"])
@pytest.mark.parametrize("how", ["cancel", "deadline", "delete"])
def test_whatever_ends_the_call_closes_the_generator(reader, key, kind, how):
    feed = Feed()

    async def main():
        handle = reader.options(timeout_s=0.5) if how == "deadline" else reader
        steps = getattr(feed, kind)()
        if how == "delete":
            response = handle.options(stream=True, method_name="slowly").remote(steps, key)
            await response.__anext__()
            del response
        else:
            response = handle.hold.remote(steps, key)
            await until_noted(reader, key, "running")
            if how == "cancel":
                response.cancel()
            with pytest.raises((RequestCancelledError, DeadlineExceededError)):
                await response
        await eventually_async(lambda: feed.ends)
        assert feed.ends == ["GeneratorExit"]
        assert len(feed.places) == 1

    run(main())


def test_a_cancelled_task_closes_the_generator(reader, key):
    feed = Feed()

    async def main():
        async def call():
            await reader.hold.remote(feed.on_loop(), key)

        task = asyncio.create_task(call())
        await until_noted(reader, key, "running")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually_async(lambda: feed.ends)
        await until_noted(reader, key, "cancelled")

    run(main())
    assert feed.ends == ["GeneratorExit"]


def test_a_loop_that_ends_under_its_generator_fails_the_stream(reader):
    responses = []

    async def never() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def main():
        responses.append(reader.caught.remote(never()))
        await asyncio.sleep(0.2)

    asyncio.run(main())
    taken, kind, *_ = responses[0].result(timeout_s=30)
    assert (taken, kind) == ([1], "RequestStreamError")


def test_a_replica_that_dies_closes_the_generator_and_is_not_repeated(deploy, key):
    app = serve_grpc.deployment(num_replicas=1, **OPTIONS)(Reader).bind()
    handle = deploy(app, f"inputs-die-{key}")
    feed = Feed()
    response = handle.options(idempotent=True).hold.remote(feed.in_thread(), key)
    eventually(lambda: handle.note.remote(key).result(timeout_s=30) == "running")
    with pytest.raises(ReplicaDiedError):
        handle.die.remote().result(timeout_s=30)
    with pytest.raises(ReplicaDiedError) as raised:
        response.result(timeout_s=30)
    assert raised.value.may_have_executed
    eventually(lambda: feed.ends)
    assert feed.ends == ["GeneratorExit"]


@pytest.mark.parametrize("method", ["feeds_inner", "feeds_inner_in_thread"])
def test_a_handler_feeds_another_one_and_is_cancelled(reader, key, method):
    response = getattr(reader, method).remote(700, key)
    assert response.result(timeout_s=30) == list(range(700))
    assert reader.note.remote(key).result(timeout_s=30) == "end"
    response = getattr(reader, method).remote(10**9, f"{key}-2")
    eventually(lambda: reader.note.remote(f"{key}-2").result(timeout_s=30) == "made")
    response.cancel()
    eventually(lambda: reader.note.remote(f"{key}-2").result(timeout_s=30) == "GeneratorExit")


# ------------------------------------------------------------ refused


def test_a_stream_belongs_to_the_first_call_that_it_is_an_argument_of(reader):
    """A second call would get what the first one leaves over, and look complete."""
    numbers = (n for n in range(3))
    assert reader.in_thread.remote(numbers).result(timeout_s=30) == [0, 1, 2]
    with pytest.raises(TypeError, match="an earlier call"):
        reader.in_thread.remote(numbers)
    ended = (n for n in range(3))
    assert list(ended) == [0, 1, 2]
    with pytest.raises(TypeError, match="has ended"):
        reader.in_thread.remote(ended)
    counted = reader.options(stream=True).count.remote(3)
    assert next(counted) == 0  # what was taken before is not part of it
    assert reader.remote(counted).result(timeout_s=30) == [1, 2]
    with pytest.raises(TypeError, match="an earlier call"):
        reader.remote(counted)
    with pytest.raises(RuntimeError, match="an argument of another call"):
        next(counted)


def test_an_async_generator_belongs_to_one_call_as_well(reader):
    async def one_and_two() -> AsyncIterator[int]:
        for number in (1, 2):
            yield number

    async def main():
        numbers = one_and_two()
        assert await reader.remote(numbers) == [1, 2]
        with pytest.raises(TypeError, match="an earlier call"):
            reader.remote(numbers)

    asyncio.run(main())


def test_where_no_stream_can_be_remote_says_so(reader):
    feed = Feed(3)
    by_reference = reader.options(_by_reference=True)
    with pytest.raises(TypeError, match="_by_reference=False"):
        by_reference.remote(feed.in_thread())
    with pytest.raises(TypeError, match=r"argument 0\[1\]"):
        reader.remote([1, feed.in_thread()])
    with pytest.raises(TypeError, match=r"argument 'a'\['x'\]\[0\]"):
        reader.all.remote(a={"x": (feed.in_thread(),)})
    with pytest.raises(TypeError, match="event loop"):
        reader.remote(feed.on_loop())
    steps = feed.in_thread()
    with pytest.raises(TypeError, match="two arguments"):
        reader.all.remote(steps, steps)
    with pytest.raises(TypeError, match="64"):
        reader.all.remote(*(iter_of(()) for _ in range(65)))
    with pytest.raises(TypeError, match="broadcast"):
        reader.broadcast("all", feed.in_thread())
    stream = reader.options(method_name="echo", stream=True).remote(iter_of([1]))
    with pytest.raises(TypeError, match="_by_reference=False"):
        by_reference.remote(stream)
    with pytest.raises(TypeError, match="Pass it directly"):
        reader.remote([stream])
    with pytest.raises(TypeError, match="Pass it directly"):
        reader.remote([feed.in_thread()], reader.has_inner.remote())
    assert list(stream) == [1]
    assert feed.made == 0


def test_a_deployment_without_our_endpoint_takes_none(serve_instance, key):
    app = serve.deployment(**OPTIONS)(Reader).bind()
    native = serve.run(app, name=f"plain-{key}", route_prefix=None)
    handle = serve_grpc.wrap(native).options(_by_reference=False)
    first = Feed(3)
    try:
        # Whether it is known by now or not: at `remote()`, or as the call's error.
        with pytest.raises(ServeGrpcError, match=r"serve_grpc\.deployment"):
            handle.remote(first.in_thread()).result(timeout_s=30)
        assert handle.has_inner.remote().result(timeout_s=30) is False
        with pytest.raises(ServeGrpcError, match=r"serve_grpc\.deployment"):
            handle.remote(first.in_thread())
        assert first.made == 0
    finally:
        serve.delete(f"plain-{key}", _blocking=False)


# ------------------------------------------------------------ who chooses the replica


@pytest.fixture(scope="module")
def assigned(deploy):
    """Two replicas, of which the user's own request router chooses one."""
    config = RequestRouterConfig(request_router_class=AnyReplica)
    options = {**OPTIONS, "num_replicas": 2, "max_ongoing_requests": 2}
    app = serve_grpc.deployment(request_router_config=config, **options)(Reader).bind()
    return deploy(app, "inputs-assigned")


def test_a_request_router_of_the_users_chooses_for_streams(assigned):
    async def main():
        assert await assigned.remote(Feed(500).on_loop()) == list(range(500))
        echo = assigned.options(method_name="echo", stream=True)
        stream = echo.remote(echo.remote(Feed(300).in_thread()))
        assert [item async for item in stream] == list(range(300))
        responses = [assigned.remote(Feed(20).on_loop()) for _ in range(30)]
        assert await asyncio.gather(*responses) == [list(range(20))] * 30
        feed = Feed()
        assert await assigned.first.remote(feed.on_loop(), 3) == [0, 1, 2]
        await eventually_async(lambda: feed.ends)
        assert feed.ends == ["GeneratorExit"]

    run(main())


def test_a_stream_inside_of_a_value_is_refused_whoever_chooses(assigned):
    assert assigned.has_inner.remote().result(timeout_s=30) is False
    with pytest.raises(TypeError, match="Pass it directly"):
        assigned.remote([iter_of([1])])


def test_a_call_to_a_chosen_replica_has_streams(reader):
    async def main():
        async with reader.choose_replica() as selection:
            response = reader.dispatch(selection, Feed(300).on_loop())
            assert await response == list(range(300))
        feed = Feed()
        async with reader.options(method_name="first").choose_replica() as selection:
            response = reader.dispatch(selection, feed.on_loop(), 2)
            assert await response == [0, 1]
        await eventually_async(lambda: feed.ends)
        assert feed.ends == ["GeneratorExit"]

    run(main())


def test_full_replicas_turn_streams_away_and_take_them_later(deploy, key):
    options = {**OPTIONS, "max_ongoing_requests": 1}
    handle = deploy(serve_grpc.deployment(**options)(Reader).bind(), f"inputs-full-{key}")

    async def main():
        responses = [handle.remote(Feed(300).on_loop()) for _ in range(20)]
        assert await asyncio.gather(*responses) == [list(range(300))] * 20

    run(main())


def test_a_multiplexed_call_has_streams(reader):
    handle = reader.options(multiplexed_model_id="a-model")
    got = handle.model.remote(iter_of([1, 2])).result(timeout_s=30)
    assert tuple(got) == ("a-model", [1, 2])
