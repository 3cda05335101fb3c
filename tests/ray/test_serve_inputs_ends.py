"""What ends or pauses calls with streams as arguments on a real Serve: generators hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ray.serve.exceptions import RequestCancelledError

import serve_grpc
from serve_grpc.config import settings
from serve_grpc.errors import (
    DeadlineExceededError,
    ReplicaDiedError,
)
from tests.ray.apps.inputs import Reader
from tests.ray.feeds import OPTIONS, Feed, run, until_noted
from tests.ray.waiting import eventually, eventually_async

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
