"""Multiplexed models stay where they are, whatever their users ask of them."""

from __future__ import annotations

import asyncio

import pytest

import serve_grpc
from tests.ray.apps.models import BAD, GOOD, Models, loads
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually

CALLS, AT_ONCE = 100, 10


@pytest.fixture(scope="module", params=[False, True], ids=["by_value", "by_reference"])
def models(request, deploy, tmp_path_factory):
    """Three replicas; (handle, directory of its notes)."""
    path = str(tmp_path_factory.mktemp("models"))
    app = serve_grpc.deployment(
        num_replicas=3,
        max_ongoing_requests=100,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0.01},
    )(Models)
    handle = deploy(app.bind(path), f"models-{request.param}")
    return handle.options(_by_reference=request.param), path


def holders(handle):
    """Models that this process knows a holder of."""
    return {model for info in infos_of(handle) for model in info.multiplexed_model_ids}


def test_bad_input_for_a_model_does_not_drive_it_from_its_replica(models):
    handle, path = models

    async def ask(model_id):
        asked = handle.options(multiplexed_model_id=model_id)
        for _ in range(CALLS):
            answers = (asked.remote(1) for _ in range(AT_ONCE))
            for answer in await asyncio.gather(*answers, return_exceptions=True):
                assert isinstance(answer, ValueError) is (model_id == BAD), answer

    async def both():
        await asyncio.gather(ask(BAD), ask(GOOD))

    for model_id in (BAD, GOOD):
        response = handle.options(multiplexed_model_id=model_id).remote(1)
        if model_id == GOOD:
            response.result(timeout_s=30)
        else:
            with pytest.raises(ValueError, match="no input"):
                response.result(timeout_s=30)
    eventually(lambda: holders(handle) == {BAD, GOOD})
    asyncio.run(both())
    assert sorted(loads(path)) == [BAD, GOOD]
