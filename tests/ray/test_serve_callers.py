"""Who may call, and how: event loops, threads, tasks, other processes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

import serve_grpc
from tests.ray.waiting import eventually


def test_async_caller_awaits_results_and_iterates_streams(bench):
    async def main():
        assert await bench.remote("a") == "a"
        stream = bench.options(method_name="items", stream=True).remote(5)
        assert [item async for item in stream] == [0, 1, 2, 3, 4]
        assert await asyncio.gather(*(bench.remote(i) for i in range(50))) == list(range(50))

    asyncio.run(main())


def test_sync_caller_blocks_for_results_and_streams(bench):
    assert bench.remote("a").result() == "a"
    assert list(bench.options(method_name="items", stream=True).remote(5)) == [0, 1, 2, 3, 4]


def test_result_timeout_leaves_the_call_running(bench, key):
    response = bench.hold.remote(key)
    with pytest.raises(TimeoutError):
        response.result(timeout_s=0.05)
    bench.release.remote(key).result(timeout_s=20)
    assert response.result(timeout_s=20) == key


def test_result_with_zero_timeout_raises_for_an_open_call_and_answers_for_a_done_one(bench, key):
    held = bench.hold.remote(key)
    with pytest.raises(TimeoutError):
        held.result(timeout_s=0)
    held.cancel()
    response = bench.remote(1)
    assert response.result(timeout_s=20) == 1
    assert response.result(timeout_s=0) == 1


def test_result_inside_an_event_loop_is_refused(bench):
    async def main():
        response = bench.remote(1)
        with pytest.raises(RuntimeError, match="asyncio"):
            response.result()
        stream = bench.options(method_name="items", stream=True).remote(2)
        with pytest.raises(RuntimeError, match="asyncio"):
            next(stream)
        assert [await response, [item async for item in stream]] == [1, [0, 1]]

    asyncio.run(main())


def test_streams_are_consumed_by_threads_and_loops_at_once(bench):
    streaming = bench.options(method_name="items", stream=True)

    async def in_loop():
        return [item async for item in streaming.remote(300)]

    with ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(lambda: list(streaming.remote(300))) for _ in range(3)]
        futures += [threads.submit(lambda: asyncio.run(in_loop())) for _ in range(3)]
        for future in futures:
            assert future.result(timeout=30) == list(range(300))


def test_a_loop_that_closed_with_calls_open_does_not_disturb_others(bench, key):
    async def leave():
        bench.hold.remote(key)
        await bench.remote(1)

    asyncio.run(leave())
    assert bench.remote(2).result(timeout_s=20) == 2
    bench.release.remote(key).result(timeout_s=20)
    eventually(lambda: bench.watch.remote(key).result(timeout_s=20)["note"] == "finished")


def test_awaiting_a_response_twice_gives_equal_results(bench):
    async def main():
        response = bench.remote([1])
        first, second = await response, await response
        assert first == second == [1]
        assert first is not second

    asyncio.run(main())
    response = bench.remote([2])
    assert response.result(timeout_s=20) == response.result(timeout_s=20) == [2]


def test_two_tasks_await_one_response(bench, key):
    async def main():
        response = bench.hold.remote(key)

        async def wait():
            return await response

        tasks = [asyncio.create_task(wait()) for _ in range(2)]
        await asyncio.sleep(0)
        await bench.release.remote(key)
        assert await asyncio.gather(*tasks) == [key, key]

    asyncio.run(main())


def test_one_of_two_awaiting_tasks_may_be_cancelled_without_the_call(bench, key):
    async def main():
        response = bench.hold.remote(key)

        async def wait():
            return await response

        keeps, leaves = (asyncio.create_task(wait()) for _ in range(2))
        while (await bench.watch.remote(key))["note"] != "running":
            pass
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        await bench.release.remote(key)
        assert await keeps == key

    asyncio.run(main())


def test_threads_and_a_loop_wait_for_one_response(bench, key):
    response = bench.hold.remote(key)

    async def wait():
        return await response

    with ThreadPoolExecutor(3) as threads:
        waits = [threads.submit(response.result, timeout_s=20) for _ in range(2)]
        waits.append(threads.submit(lambda: asyncio.run(wait())))
        bench.release.remote(key).result(timeout_s=20)
        assert [future.result(timeout=20) for future in waits] == [key] * 3


def test_an_exception_awaited_twice_is_raised_twice(bench):
    response = bench.fail.remote("ValueError")
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad value"):
            response.result(timeout_s=20)


def test_a_pickled_handle_works_in_a_ray_task_and_keeps_its_options(bench):
    @ray.remote(num_cpus=0.01)
    def call(handle):
        response = handle.remote("x")
        return type(handle).__module__, response.by_reference, response.result(timeout_s=30)

    handle = bench.options(timeout_s=50, idempotent=True)
    assert ray.get(call.remote(handle), timeout=60) == ("serve_grpc.handle", False, "x")


def test_pickling_a_handle_keeps_every_option(bench):
    handle = bench.options(
        method_name="request",
        multiplexed_model_id="m",
        request_serialization="msgpack",
        timeout_s=50,
        idempotent=True,
    )
    copy = ray.cloudpickle.loads(ray.cloudpickle.dumps(handle))
    assert type(copy) is serve_grpc.DeploymentHandle
    assert copy.handle_options == handle.handle_options
    assert (copy._timeout_s, copy._idempotent) == (50, True)
    assert copy.remote().result(timeout_s=20)["model_id"] == "m"


def test_a_handle_sent_to_another_deployment_works_there(bench, inner):
    for by_reference in (True, False):
        outer = bench.options(_by_reference=by_reference)
        got = outer.call_handle.remote(inner, "x").result(timeout_s=20)
        assert got == ["serve_grpc.handle", "x"]


def test_a_thread_interrupted_by_its_deadline_leaves_nothing_behind(bench, key):
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            bench.hold.remote(key).result(timeout_s=0.01)
    bench.release.remote(key).result(timeout_s=20)
    eventually(lambda: threading.active_count() <= before + 1)
    assert bench.remote(1).result(timeout_s=20) == 1
