"""Responses and ObjectRefs as arguments of further calls."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

from serve_grpc.errors import DeadlineExceededError
from serve_grpc.threads import THREAD_NAME

BOTH = (True, False)


@pytest.fixture
def bench(bench_over):
    """Over each carrier."""
    return bench_over


@pytest.fixture
def inner(inner_over):
    """Over the same."""
    return inner_over


class Telling:
    """Arrives as the name of the thread that pickled it."""

    def __reduce__(self):
        return str, (threading.current_thread().name,)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(BOTH, BOTH)))
def test_response_is_an_argument_of_another_call(bench, inner, first, second):
    response = bench.options(_by_reference=first).remote("from the first")
    chained = inner.options(_by_reference=second).arguments.remote(response, x=response)
    assert chained.result(timeout_s=20) == [["from the first"], {"x": "from the first"}]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(BOTH, BOTH)))
def test_response_is_an_argument_in_async_code(bench, inner, first, second):
    async def main():
        response = bench.options(_by_reference=first).remote("from the first")
        return await inner.options(_by_reference=second).remote(response)

    assert asyncio.run(main()) == "from the first"


def test_the_loop_of_sessions_does_not_pickle_what_waits_for_a_response(bench, inner):
    (value, pickled_by), _ = inner.arguments.remote(bench.remote(1), Telling()).result(timeout_s=20)
    assert value == 1
    assert pickled_by.startswith(THREAD_NAME)


@pytest.mark.parametrize("first", BOTH)
def test_failed_response_as_argument_fails_the_second_call(bench, inner, first):
    response = bench.options(_by_reference=first).fail.remote("ValueError")
    with pytest.raises(ValueError, match="a bad value"):
        inner.remote(response).result(timeout_s=20)


def test_cancelling_a_call_that_waits_for_its_argument_ends_it(bench, inner, key):
    from ray.serve.exceptions import RequestCancelledError

    held = bench.hold.remote(key)
    waiting = inner.remote(held)
    waiting.cancel()
    with pytest.raises(RequestCancelledError):
        waiting.result(timeout_s=20)
    bench.release.remote(key).result(timeout_s=20)
    assert held.result(timeout_s=20) == key


def test_deadline_counts_while_waiting_for_an_argument(bench, inner, key):
    held = bench.hold.remote(key)
    try:
        with pytest.raises(DeadlineExceededError):
            inner.options(timeout_s=0.2).remote(held).result(timeout_s=3)
    finally:
        held.cancel()


def test_chain_of_ten_responses(bench, inner):
    response = bench.remote("x")
    for i in range(10):
        response = (bench, inner)[i % 2].options(_by_reference=bool(i % 3 == 0)).remote(response)
    assert response.result(timeout_s=20) == "x"


@pytest.mark.parametrize("by_reference", BOTH)
def test_object_refs_among_arguments_arrive_as_values(bench, by_reference):
    handle = bench.options(_by_reference=by_reference)
    ref = ray.put({"a": 1})
    assert handle.arguments.remote(ref, x=ref).result(timeout_s=20) == [[{"a": 1}], {"x": {"a": 1}}]


@pytest.mark.parametrize("by_reference", BOTH)
def test_object_ref_nested_in_a_container_stays_a_reference(bench, by_reference):
    handle = bench.options(_by_reference=by_reference)
    nested = handle.remote([ray.put("deep")]).result(timeout_s=20)
    assert isinstance(nested[0], ray.ObjectRef)
    assert ray.get(nested[0], timeout=20) == "deep"


def test_object_ref_of_a_failed_task_fails_the_call(bench):
    @ray.remote(num_cpus=0.01)
    def fail():
        raise ValueError("in the task")

    with pytest.raises(ValueError, match="in the task"):
        bench.remote(fail.remote()).result(timeout_s=60)


@pytest.mark.parametrize("first", BOTH)
def test_generator_as_argument_of_a_call_by_reference_is_refused(bench, inner, first):
    stream = bench.options(method_name="items", stream=True, _by_reference=first).remote(3)
    with pytest.raises(TypeError, match="calls by value take them"):
        inner.options(_by_reference=True).remote(stream)
    stream.cancel()


def test_answers_of_a_burst_belong_to_their_calls(bench):
    responses = [bench.remote(i) for i in range(100)]
    assert [response.result(timeout_s=20) for response in responses] == list(range(100))


@pytest.mark.parametrize("by_reference", [True, False])
def test_what_one_consumer_does_to_a_result_no_other_sees(bench, by_reference):
    handle = bench.options(_by_reference=by_reference)

    async def main():
        response = handle.remote([1, 2])
        (await response).append(3)
        return await response, await handle.remote(response)

    assert asyncio.run(main()) == ([1, 2], [1, 2])
    response = bench.remote([1, 2])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: response.result(timeout_s=20), range(8)))
    assert results == [[1, 2]] * 8
    assert len({id(result) for result in results}) == 8
