"""Streams as arguments on a real Serve, over each carrier: generators, responses and streams that a
handler has itself; read, handed on, and failed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest
import ray

from serve_grpc.config import settings
from serve_grpc.errors import (
    RequestStreamError,
    SerializationError,
)
from tests.ray.apps.inputs import Refusal
from tests.ray.feeds import WHO, Feed, iter_of, run
from tests.ray.waiting import eventually

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
