"""On a real Serve: which actors a caller looks up, when, and in which thread.

Each test has a handle with a router of its own, to which the list of replicas comes anew.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import ray
from ray.serve import handle as serve_handle
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.config import RequestRouterConfig

import serve_grpc
from tests.ray.apps.models import Models
from tests.ray.apps.routed import ByFirstArgument, Named
from tests.ray.listing import infos_of
from tests.ray.look_ups import counted_look_ups
from tests.ray.needs import needs_ray
from tests.ray.waiting import eventually

pytestmark = needs_ray("2.60", "lists that may be kept from Serve's request router")

REPLICAS = 4
OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}
WAIT_S = 30


@pytest.fixture
def look_ups(monkeypatch):
    return counted_look_ups(monkeypatch)


def deployed(deploy, cls, name, *args, **options):
    app = serve_grpc.deployment(num_replicas=REPLICAS, **{**OPTIONS, **options})(cls)
    deploy(app.bind(*args), name)
    return cls.__name__, name


@pytest.fixture(scope="module")
def named(deploy):
    return deployed(deploy, Named, "fleet")


@pytest.fixture
def fresh(look_ups):
    """Makes handles that share no router with another one; after look-ups are counted."""
    with contextlib.ExitStack() as stack:

        def fresh(of, kind=serve_grpc.DeploymentHandle):
            handle = kind(*of)
            stack.callback(lambda: handle.is_initialized and handle.shutdown())
            return handle

        yield fresh


def by_value(handle):
    return handle.options(_by_reference=False)


def is_off_the_loop(look_ups, handle):
    loops_thread = handle._data_router.mailbox._thread_id
    assert loops_thread
    return loops_thread not in look_ups.threads


def ask(handle, place=0):
    return handle.remote(place).result(timeout_s=WAIT_S)


def test_calls_by_value_look_up_nobody_at_first_or_later(named, fresh, look_ups):
    handle = by_value(fresh(named))
    for _ in range(20):
        ask(handle)
    assert len(set(handle.options(method_name="stream", stream=True).remote(0))) == 1
    before = {info.replica_id.unique_id for info in infos_of(handle)}
    assert len(before) == REPLICAS
    victim = ask(handle)
    kill(handle, victim)
    listed = lambda: {info.replica_id.unique_id for info in infos_of(handle)}  # noqa: E731
    eventually(lambda: len(listed()) == REPLICAS and victim not in listed(), timeout_s=60)
    for _ in range(20):
        assert ask(handle) != victim
    assert look_ups.replicas == []


def kill(handle, replica_id):
    """End the process of a replica; returns when nobody finds its actor any more."""
    (name,) = [i.actor_name for i in infos_of(handle) if i.replica_id.unique_id == replica_id]
    ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))

    def is_gone():
        try:
            ray.get_actor(name, namespace=SERVE_NAMESPACE)
        except ValueError:
            return True
        return False

    eventually(is_gone)


def test_an_option_that_starts_the_router_starts_ours(named, fresh, look_ups):
    handle = fresh(named).options(_prefer_local_routing=True, _by_reference=False)
    eventually(lambda: handle.running_replicas_populated())
    assert look_ups.replicas == []
    assert ask(handle)


def test_a_call_by_reference_looks_up_whom_it_considers(named, fresh, look_ups):
    handle = by_value(fresh(named))
    ask(handle)
    assert ask(handle.options(_by_reference=True))
    assert 1 <= len(set(look_ups.replicas)) == len(look_ups.replicas) <= 2
    assert is_off_the_loop(look_ups, handle)
    answers = {ask(handle.options(_by_reference=True)) for _ in range(60)}
    assert len(answers) == REPLICAS  # they go to all of them, in time
    assert len(look_ups.replicas) == REPLICAS


def test_what_only_calls_by_reference_stays_serves(named, fresh, look_ups):
    for kind in (serve_handle.DeploymentHandle, serve_grpc.DeploymentHandle):
        look_ups.replicas.clear()
        handle = fresh(named, kind)
        assert ask(handle)
        assert len(look_ups.replicas) == REPLICAS
        assert "_serve_grpc_lists" not in vars(handle._router._asyncio_router)


@pytest.mark.parametrize("by_reference", [True, False])
def test_who_chooses_a_replica_looks_up_whom_it_considers(named, fresh, look_ups, by_reference):
    first = by_value(fresh(named))
    ask(first)
    handle = first.options(_by_reference=by_reference)

    async def main():
        async with handle.choose_replica(0) as selection:
            return selection.replica_id, await handle.dispatch(selection, 0)

    chosen, answered = asyncio.run(main())
    assert chosen == answered
    assert len(look_ups.replicas) <= 2
    assert is_off_the_loop(look_ups, first)


def test_a_broadcast_by_value_looks_up_nobody_and_one_by_reference_all(named, fresh, look_ups):
    handle = by_value(fresh(named))
    sums = handle.broadcast("add", 0).results(timeout_s=WAIT_S)
    assert len(sums) == REPLICAS
    assert look_ups.replicas == []
    handle.options(_by_reference=True).broadcast("add", 1).results(timeout_s=WAIT_S)
    assert len(look_ups.replicas) == REPLICAS
    assert is_off_the_loop(look_ups, handle)
    assert handle.broadcast("add", 0).results(timeout_s=WAIT_S) == [value + 1 for value in sums]


def test_a_router_of_the_deployments_own_looks_up_whom_it_considers(
    deploy, fresh, look_ups, tmp_path
):
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument,
        request_router_kwargs={"path": str(tmp_path / "notes")},
    )
    of = deployed(deploy, Named, "fleet-routed", request_router_config=config)
    handle = by_value(fresh(of))
    first = ask(handle, 1)
    assert len(look_ups.replicas) == 1
    assert {ask(handle, place) for place in (1, 5)} == {first}
    assert ask(handle, 2) != first
    assert ask(handle.options(_by_reference=True), 1) == first
    assert len(look_ups.replicas) == 2
    assert is_off_the_loop(look_ups, handle)


@pytest.mark.parametrize("by_reference", [True, False])
def test_a_call_for_a_model_goes_to_its_holder(
    deploy, fresh, look_ups, tmp_path_factory, by_reference
):
    path = str(tmp_path_factory.mktemp("models"))
    of = deployed(deploy, Models, f"fleet-models-{by_reference}", path)
    ours = by_value(fresh(of))
    handle = ours.options(_by_reference=by_reference, multiplexed_model_id="m")
    _, holder = handle.remote().result(timeout_s=WAIT_S)
    eventually(lambda: any("m" in info.multiplexed_model_ids for info in infos_of(ours)))
    answers = [handle.remote().result(timeout_s=WAIT_S) for _ in range(8)]
    assert answers.count(("m", holder)) >= 7  # Serve looks elsewhere if the holder answers late
    if not by_reference:
        assert look_ups.replicas == []


def test_who_died_before_it_was_looked_up_gets_no_call(deploy, fresh, look_ups):
    of = deployed(deploy, Named, "fleet-dead", health_check_period_s=60)
    ours = by_value(fresh(of))
    victim = ask(ours)
    kill(ours, victim)
    handle = by_value(fresh(of))
    ask(handle)
    by_reference = handle.options(_by_reference=True)
    assert victim in {info.replica_id.unique_id for info in infos_of(handle)}
    answers = {ask(by_reference) for _ in range(40)}
    assert len(answers) == REPLICAS - 1
    assert victim in look_ups.replicas
    assert victim not in answers
    assert len(by_reference.broadcast("add", 0).results(timeout_s=WAIT_S)) == REPLICAS - 1
    assert is_off_the_loop(look_ups, handle)
