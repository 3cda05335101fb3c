"""Calls with streams as arguments on a real Serve: which are refused, and who chooses replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

import serve_grpc
from serve_grpc.errors import (
    ServeGrpcError,
)
from tests.ray.apps.inputs import Reader
from tests.ray.apps.routed import AnyReplica
from tests.ray.feeds import OPTIONS, Feed, iter_of, run
from tests.ray.waiting import eventually_async

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
