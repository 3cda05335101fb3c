"""Deadlines, cancels, abandoned streams and slow consumers: nobody works for nobody."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time

import pytest
from ray.serve.exceptions import RequestCancelledError

import serve_grpc
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.carriers.grpc.dial import dial as dial_grpc
from serve_grpc.config import settings
from serve_grpc.errors import DeadlineExceededError
from tests.ray.apps.bench import Workbench
from tests.ray.waiting import eventually


@pytest.fixture
def bench(bench_over):
    """Over each carrier."""
    return bench_over


@pytest.fixture
def inner(inner_over):
    """Over the same."""
    return inner_over


def note(handle, key):
    return handle.watch.remote(key).result(timeout_s=20)["note"]


def produced(handle, key):
    return handle.watch.remote(key).result(timeout_s=20)["produced"]


def is_idle(handle):
    return handle.watch.remote().result(timeout_s=20)["running"] == 0


# ------------------------------------------------------------ deadlines


def test_deadline_of_a_running_call_ends_both_sides(bench, key):
    started_s = time.monotonic()
    response = bench.options(timeout_s=0.3).hold.remote(key)
    with pytest.raises(DeadlineExceededError) as raised:
        response.result(timeout_s=20)
    assert 0.2 < time.monotonic() - started_s < 5
    assert raised.value.may_have_executed
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.request_id == response.request_id
    eventually(lambda: note(bench, key) == "cancelled")
    assert is_idle(bench)


def test_deadline_ends_a_stream_after_its_items(bench, key):
    stream = bench.options(method_name="hold_stream", stream=True, timeout_s=0.3).remote(key, 2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(DeadlineExceededError):
        next(stream)
    eventually(lambda: note(bench, key) == "cancelled")


def test_call_within_its_deadline_is_not_disturbed(bench):
    assert bench.options(timeout_s=30).remote(1).result(timeout_s=20) == 1
    stream = bench.options(method_name="items", stream=True, timeout_s=30).remote(3)
    assert list(stream) == [0, 1, 2]


def test_nested_call_inherits_what_is_left_of_the_deadline(bench):
    left = bench.options(timeout_s=10).call_inner.remote("deadline_left_ms").result(timeout_s=20)
    assert 5_000 < left <= 10_000
    assert bench.call_inner.remote("deadline_left_ms").result(timeout_s=20) is None


def test_deadline_of_the_outer_call_ends_the_nested_one(bench, inner, key):
    with pytest.raises(DeadlineExceededError):
        bench.options(timeout_s=0.3).call_inner.remote("hold", key).result(timeout_s=20)
    eventually(lambda: note(inner, key) == "cancelled")


def test_a_deadline_that_passes_because_no_port_can_be_reached_says_so(deploy, caplog):
    async def dial_nobody(_, settings):
        return await dial_grpc("127.0.0.1:1", settings)

    app = serve_grpc.deployment(
        num_replicas=4,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0.01},
    )(Workbench)
    with dialling_by(dial_nobody):
        handle = deploy(app.bind(), "unreachable")
        with pytest.raises(DeadlineExceededError, match="no replica could be reached") as raised:
            handle.options(timeout_s=4).remote(1).result(timeout_s=30)
        told = str(raised.value)
        replicas = serve_grpc.handle_statistics(handle).replicas
        assert sum(f"{r.replica_id} at {r.address}: UNAVAILABLE" in told for r in replicas) == 3
        assert told.endswith(", and 1 more")
        assert not raised.value.may_have_executed
        assert "cannot reach replica" in caplog.text
        response = handle.remote(1)
    assert response.result(timeout_s=30) == 1  # one without a deadline had patience


# ------------------------------------------------------------ cancels


def test_cancel_reaches_the_running_handler_and_frees_its_slot(bench, key):
    response = bench.hold.remote(key)
    eventually(lambda: note(bench, key) == "running")
    assert not response.cancelled()
    response.cancel()
    assert response.cancelled()
    with pytest.raises(RequestCancelledError) as raised:
        response.result(timeout_s=20)
    assert response.request_id in str(raised.value)
    eventually(lambda: note(bench, key) == "cancelled")
    assert is_idle(bench)


def test_cancel_after_the_end_changes_nothing(bench):
    response = bench.remote("x")
    assert response.result(timeout_s=20) == "x"
    response.cancel()
    assert response.result(timeout_s=20) == "x"


def test_cancelling_the_awaiting_task_cancels_the_handler(bench, key):
    async def main():
        async def wait():
            await bench.hold.remote(key)

        task = asyncio.create_task(wait())
        while (await bench.watch.remote(key))["note"] != "running":
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    eventually(lambda: note(bench, key) == "cancelled")


def test_wait_for_cancels_the_handler(bench, key):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(bench.hold.remote(key), 0.3)

    asyncio.run(main())
    eventually(lambda: note(bench, key) == "cancelled")


def test_cancel_reaches_nested_calls_of_a_parent_by_reference(bench, inner, key):
    response = bench.options(_by_reference=True).call_inner.remote("hold", key)
    eventually(lambda: note(inner, key) == "running")
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=20)
    eventually(lambda: note(inner, key) == "cancelled")


def test_cancel_reaches_a_nested_stream(bench, inner, key):
    response = bench.list_inner.remote("hold_stream", key, 1)
    eventually(lambda: note(inner, key) == "running")
    response.cancel()
    eventually(lambda: note(inner, key) == "cancelled")


# ------------------------------------------------------------ streams nobody reads to the end


@pytest.mark.parametrize("by_reference", [True, False])
def test_closed_generator_stops_its_producer_though_it_is_still_referred_to(
    bench, key, by_reference
):
    handle = bench.options(method_name="hold_stream", stream=True, _by_reference=by_reference)
    kept = []

    async def main():
        stream = handle.remote(key, 1)
        kept.append(stream)
        async with contextlib.aclosing(stream):
            async for item in stream:
                assert item == 0
                break
            await asyncio.to_thread(eventually, lambda: note(bench, key) == "running")
        await asyncio.to_thread(eventually, lambda: note(bench, key) == "cancelled")

    asyncio.run(main())
    assert is_idle(bench)


@pytest.mark.parametrize("method", ["endless", "endless_in_thread"])
def test_abandoned_generator_stops_its_producer(bench, key, method):
    stream = bench.options(method_name=method, stream=True).remote(key, 100)
    next(stream)
    del stream
    gc.collect()
    eventually(lambda: note(bench, key) in ("cancelled", "closed"))


def test_a_call_whose_response_is_let_go_runs_to_its_end(bench, key):
    bench.hold.remote(key)
    eventually(lambda: note(bench, key) == "running")
    gc.collect()
    bench.release.remote(key).result(timeout_s=20)
    eventually(lambda: note(bench, key) == "finished")


def test_leaving_an_async_for_early_stops_the_producer(bench, key):
    async def main():
        async for _ in bench.options(method_name="endless", stream=True).remote(key, 100):
            break
        gc.collect()

        def is_over():
            return note_of["note"] in ("cancelled", "closed")

        note_of = await bench.watch.remote(key)
        while not is_over():
            note_of = await bench.watch.remote(key)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert note(bench, key) in ("cancelled", "closed")


@pytest.mark.parametrize("method", ["endless", "endless_in_thread"])
def test_slow_consumer_bounds_what_is_produced(bench, key, method):
    size = 20_000
    stream = bench.options(method_name=method, stream=True).remote(key, size)
    next(stream)

    def has_stopped():
        before = produced(bench, key)
        for _ in range(20):  # other calls pass while the stream is paused
            bench.remote(1).result(timeout_s=20)
        return before if produced(bench, key) == before else 0

    ahead = eventually(has_stopped)
    assert ahead <= settings.stream_window_bytes // size + 3
    for _ in range(300):
        assert len(next(stream)) == size
    assert produced(bench, key) >= 300
    stream.cancel()
    eventually(lambda: note(bench, key) in ("cancelled", "closed"))


def test_slow_consumer_of_small_items_is_bounded_by_their_number(bench, key):
    stream = bench.options(method_name="endless", stream=True).remote(key, 1)
    next(stream)
    eventually(lambda: produced(bench, key) >= settings.stream_window_items)
    for _ in range(20):
        bench.remote(1).result(timeout_s=20)
    assert produced(bench, key) <= settings.stream_window_items + 2
    stream.cancel()


def test_a_paused_stream_leaves_the_others_alone(bench, key):
    paused = bench.options(method_name="endless", stream=True).remote(key, 20_000)
    next(paused)
    other = bench.options(method_name="items", stream=True).remote(2_000)
    assert list(other) == list(range(2_000))
    paused.cancel()


def test_large_items_flow_through_a_small_window(bench):
    stream = bench.options(method_name="items", stream=True).remote(8, 2 * 1024 * 1024)
    assert [len(item) for item in stream] == [2 * 1024 * 1024] * 8


def test_async_consumer_gets_every_item_in_order(bench):
    async def main():
        stream = bench.options(method_name="items", stream=True).remote(3_000)
        got = [item async for item in stream]
        assert got == list(range(3_000))
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()

    asyncio.run(main())
