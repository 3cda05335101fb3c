"""`@serve.batch` and `@serve.multiplexed`."""

from __future__ import annotations

import asyncio

import pytest

import serve_grpc
from tests.ray.apps.batching import batching_app
from tests.ray.compat.behaviours import behaviour
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually

SECTION = "Batching and multiplexing"


@pytest.fixture(scope="module")
def batches(deploy):
    return deploy(batching_app(), "batching")


@pytest.fixture(scope="module")
def models(batches):
    return serve_grpc.get_deployment_handle("Models", "batching")


def results(responses):
    return [response.result(timeout_s=30) for response in responses]


# ------------------------------------------------------------ batches


@behaviour(SECTION, "`@serve.batch` runs calls that wait at the same time as one batch")
def test_full_batches(transport, batches):
    handle = transport.over(batches)
    responses = [handle.full.remote(i) for i in range(8)]
    got = results(responses)
    assert [value for value, _, _ in got] == list(range(8))
    assert {size for _, size, _ in got} == {4}


@behaviour(SECTION, "Each call of a batch keeps its own request context")
def test_contexts_in_a_batch(transport, batches):
    handle = transport.over(batches)
    responses = [handle.full.remote(i) for i in range(4)]
    ids = {response.request_id for response in responses}
    assert len(ids) == 4
    for _, _, seen in results(responses):
        assert set(seen) == ids


@behaviour(SECTION, "A batch that is not full starts after `batch_wait_timeout_s`")
def test_partial_batches(transport, batches):
    handle = transport.over(batches)
    handle.reset.remote().result(timeout_s=30)
    got = results([handle.partial.remote(i) for i in range(5)])
    assert [value for value, _ in got] == list(range(5))
    assert sum(handle.reset.remote().result(timeout_s=30)) == 5
    assert max(size for _, size in got) > 1


@behaviour(SECTION, "An error in a batch fails each of its calls with the error's own type")
def test_errors_in_a_batch(transport, batches):
    handle = transport.over(batches)
    responses = [handle.partial.remote(value) for value in ("good", "bad")]
    for response in responses:
        with pytest.raises(ValueError, match="a bad value in the batch"):
            response.result(timeout_s=30)


@behaviour(SECTION, "A call that is cancelled before its batch starts is left out of it")
def test_cancelled_calls_leave_the_batch(transport, batches, key):
    handle = transport.over(batches)
    responses = [handle.noted.remote(value) for value in (key, 1, 2)]
    eventually(lambda: key in handle.waiting.remote().result(timeout_s=30))
    responses.pop(0).cancel()
    eventually(lambda: key in handle.were_cancelled.remote().result(timeout_s=30))
    responses.append(handle.noted.remote(3))
    got = results(responses)
    assert [[value, size] for value, size, _ in got] == [[1, 3], [2, 3], [3, 3]]


@behaviour(SECTION, "The streams of one batched generator run together, and each ends on its own")
def test_streaming_batches(transport, batches):
    async def items(end):
        stream = transport.over(batches).options(method_name="counted", stream=True).remote(end)
        return [item async for item in stream]

    async def main():
        return await asyncio.gather(*(items(end) for end in (1, 3, 5)))

    assert asyncio.run(main()) == [[[i, 3] for i in range(end)] for end in (1, 3, 5)]


# ------------------------------------------------------------ models


@behaviour(SECTION, "`serve.get_multiplexed_model_id()` is the handle's `multiplexed_model_id`")
def test_model_id_of_a_call(transport, models):
    handle = transport.over(models).options(multiplexed_model_id="m")
    assert handle.in_thread.remote().result(timeout_s=30) == "m"
    assert list(handle.options(method_name="items", stream=True).remote(3)) == ["m"] * 3


def holders(handle, model_id):
    """How many replicas hold the model, as far as this process has heard."""
    return sum(model_id in info.multiplexed_model_ids for info in infos_of(handle))


@behaviour(SECTION, "Calls for a model go to the replica that holds it")
def test_calls_go_where_the_model_is(transport, models, key):
    handle = transport.over(models)
    for i in range(3):
        wants = handle.options(multiplexed_model_id=f"{key}-{i}")
        first, *_ = wants.remote().result(timeout_s=30)
        eventually(lambda wants=wants, i=i: holders(wants, f"{key}-{i}") == 1)
        pids = [wants.remote().result(timeout_s=30)[0] for _ in range(12)]
        # Serve looks elsewhere when a busy machine makes the holder answer late.
        assert pids.count(first) >= 10


@behaviour(SECTION, "A replica unloads the model that was not used for the longest time")
def test_least_recently_used_model_goes(transport, models, key):
    handle = transport.over(models)
    held = []
    for i in range(6):
        *_, held = handle.options(multiplexed_model_id=f"{key}-{i}").remote().result(timeout_s=30)
    assert len(held) <= 2
    assert held[-1] == f"{key}-5"


@behaviour(SECTION, "Calls for a model go to other replicas while the one that holds it is full")
def test_busy_holder_of_a_model(transport, models, key):
    handle = transport.over(models).options(multiplexed_model_id=key)
    handle.remote().result(timeout_s=30)
    got = results([handle.remote(0.5) for _ in range(8)])
    assert len({pid for pid, *_ in got}) == 2
    assert {model for _, model, _, _ in got} == {key}


@behaviour(SECTION, "A batch holds calls for one model only")
def test_batches_are_split_by_model(transport, models, key):
    handle = transport.over(models)
    wants = [handle.options(multiplexed_model_id=f"{key}-{i % 2}").batched for i in range(4)]
    got = results([wanted.remote(i) for i, wanted in enumerate(wants)])
    assert [[value, model] for value, model, _ in got] == [[i, f"{key}-{i % 2}"] for i in range(4)]
    assert max(size for *_, size in got) <= 2


@behaviour(SECTION, "Calls for models may be made from a replica")
def test_models_called_by_a_replica(transport, batches, key):
    names = [f"{key}-{i % 2}" for i in range(6)]
    got = batches.by_models.remote(transport.name, names).result(timeout_s=30)
    assert [model for _, model, _, _ in got] == names
