"""Who gets a call: request routers of the user's own, session ids, chosen replicas, broadcasts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import pytest
from ray.serve.config import RequestRouterConfig

import serve_grpc
from tests.ray.apps.routed import ByFirstArgument, Chooser, Named
from tests.ray.compat.behaviours import behaviour
from tests.ray.waiting import eventually

REPLICAS = 3
SLOTS = 4
OPTIONS = {
    "num_replicas": REPLICAS,
    "max_ongoing_requests": SLOTS,
    "graceful_shutdown_wait_loop_s": 0.1,
    "ray_actor_options": {"num_cpus": 0.01},
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    return tmp_path_factory.mktemp("router") / "notes"


@pytest.fixture(scope="module")
def placed(deploy, notes):
    """A deployment whose request router goes by the first argument."""
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument, request_router_kwargs={"path": str(notes)}
    )
    named = serve_grpc.deployment(**OPTIONS, request_router_config=config)(Named)
    return deploy(named.bind(), "routed-by-argument")


@pytest.fixture(scope="module")
def sticky(deploy):
    """A deployment under Serve's router by consistent hashing of session ids."""
    config = RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
    )
    named = serve_grpc.deployment(**OPTIONS, request_router_config=config)(Named)
    return deploy(named.bind(), "routed-by-session")


@pytest.fixture(scope="module")
def chooser(deploy):
    """A caller of a deployment under Serve's default router."""
    named = serve_grpc.deployment(**OPTIONS)(Named)
    options = {**OPTIONS, "num_replicas": 1, "max_ongoing_requests": 100}
    return deploy(serve_grpc.deployment(**options)(Chooser).bind(named.bind()), "chooser")


@pytest.fixture(scope="module")
def named(chooser):
    return serve_grpc.get_deployment_handle("Named", "chooser")


def replica_of(handle, place):
    return handle.remote(place).result(timeout_s=30)


@behaviour("Routing", "A request router of the user's own places each call")
def test_custom_request_router_is_asked_for_each_call(transport, placed):
    handle = transport.over(placed)
    places = [replica_of(handle, place) for place in (0, 1, 2, 2, 1, 0)]
    assert len(set(places)) == REPLICAS
    assert places == places[::-1]


@behaviour("Routing", "A request router sees arguments, and is told what was routed and completed")
def test_custom_request_router_is_told_what_happens(transport, placed, notes):
    def are_told() -> bool:  # of earlier calls
        text = notes.read_text()
        return text.count("routed ") == text.count("completed ")

    handle = transport.over(placed)
    replica_of(handle, 1)
    eventually(are_told)
    notes.unlink()
    replica = replica_of(handle, 1)
    eventually(lambda: f"completed {replica}" in notes.read_text())
    lines = notes.read_text().splitlines()
    assert lines[0] == "choose 1"
    assert lines.count(f"routed 1 {replica}") == 1
    assert lines.count(f"completed {replica}") == 1


@behaviour("Routing", "Streams, errors and many calls at once work under such a router")
def test_custom_request_router_places_streams_errors_and_bursts(transport, placed):
    handle = transport.over(placed)
    where = {place: replica_of(handle, place) for place in range(REPLICAS)}
    assert list(handle.options(stream=True).stream.remote(1)) == [where[1]] * 3
    with pytest.raises(ValueError, match="failed at 2"):
        handle.fail.remote(2).result(timeout_s=30)
    burst = [(i, handle.sleep.remote(i)) for i in range(REPLICAS * SLOTS * 3)]  # more than fit
    assert all(r.result(timeout_s=60) == where[i % REPLICAS] for i, r in burst)


@behaviour("Routing", "Cancelling a call that such a router placed reaches the handler")
def test_cancel_reaches_a_call_placed_by_a_custom_router(transport, placed, tmp_path):
    path = tmp_path / "hang"
    response = transport.over(placed).hang.remote(1, str(path))
    eventually(lambda: path.exists() and path.read_text() == "start\n")
    response.cancel()
    eventually(lambda: path.read_text() == "start\ncancelled\n")


@behaviour("Routing", "Calls of one `session_id` stay on one replica (consistent hashing)")
def test_calls_of_a_session_stay_together(transport, sticky):
    handle = transport.over(sticky)
    by_session = {}
    for i in range(24):
        session_id = f"session-{i % 8}"
        answer = handle.options(session_id=session_id).session.remote().result(timeout_s=30)
        replica_id, told = answer
        assert told == session_id
        by_session.setdefault(session_id, set()).add(replica_id)
    # Serve's router goes elsewhere when a replica does not tell its queue length within 0.1 s.
    assert sum(len(replicas) == 1 for replicas in by_session.values()) >= 5, by_session
    assert len(set.union(*by_session.values())) > 1


@behaviour("Routing", "`choose_replica` reserves a slot and `dispatch` uses it")
def test_dispatch_goes_to_the_chosen_replica(transport, chooser):
    pairs = chooser.choose.remote(transport.name, 20).result(timeout_s=60)
    assert [answered for _, answered in pairs] == [chosen for chosen, _ in pairs]


@behaviour("Routing", "`dispatch` of a stream")
def test_dispatch_of_a_stream(transport, chooser):
    chosen, items = chooser.choose_stream.remote(transport.name).result(timeout_s=60)
    assert items == [chosen] * 3


@behaviour("Routing", "A chosen replica that is not used gets its slot back")
def test_unused_reservations_give_their_slots_back(transport, chooser, named):
    times = REPLICAS * SLOTS * 2  # more than there are slots
    assert chooser.choose_and_leave.remote(transport.name, times).result(timeout_s=60) == times
    burst = [transport.over(named).sleep.remote() for _ in range(REPLICAS * SLOTS)]
    assert len([r.result(timeout_s=60) for r in burst]) == REPLICAS * SLOTS


@behaviour("Routing", "A reserved slot can be used even if the replicas are otherwise full")
def test_reservations_hold_when_everything_is_reserved(transport, chooser):
    answers = chooser.reserve_all.remote(transport.name, REPLICAS * SLOTS).result(timeout_s=60)
    assert set(Counter(answers).values()) == {SLOTS}


@behaviour("Routing", "A selection can be dispatched only once")
def test_a_selection_is_dispatched_once(transport, chooser):
    text = chooser.dispatch_twice.remote(transport.name).result(timeout_s=60)
    assert "already been dispatched" in text


@behaviour("Routing", "`broadcast` reaches every replica once")
def test_broadcast_reaches_every_replica_once(transport, chooser, named):
    handle = transport.over(named)
    before = sorted(handle.broadcast("add", 0).results(timeout_s=30))
    assert len(before) == REPLICAS
    after = handle.broadcast("add", number=5).results(timeout_s=30)
    assert sorted(after) == [cache + 5 for cache in before]
    inside = chooser.add_everywhere.remote(transport.name, 1).result(timeout_s=30)
    assert sorted(inside) == [cache + 6 for cache in before]


@behaviour("Routing", "`broadcast` waits for full replicas instead of failing")
def test_broadcast_waits_for_full_replicas(transport, named, tmp_path):
    handle = transport.over(named)
    path = tmp_path / "hang"
    holding = [handle.hang.remote(0, str(path)) for _ in range(REPLICAS * SLOTS)]
    eventually(lambda: path.exists() and path.read_text().count("start") == len(holding))
    response = handle.broadcast("add", 0)
    with pytest.raises(TimeoutError):
        response.results(timeout_s=0.5)
    for held in holding:
        held.cancel()
    assert len(response.results(timeout_s=30)) == REPLICAS


def test_deadline_and_limit_hold_under_a_custom_router(placed, tmp_path):
    path = tmp_path / "hang"
    with pytest.raises(serve_grpc.errors.DeadlineExceededError):
        placed.options(timeout_s=3).hang.remote(0, str(path)).result(timeout_s=30)
    eventually(lambda: path.exists() and path.read_text() == "start\ncancelled\n")
    with pytest.raises(serve_grpc.errors.MessageTooLargeError):
        placed.fail.remote(0, "x" * 5_000_000).result(timeout_s=30)


def test_a_custom_router_goes_on_when_a_replica_dies(deploy, tmp_path):
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument, request_router_kwargs={"path": str(tmp_path / "n")}
    )
    options = {**OPTIONS, "num_replicas": 2}
    app = serve_grpc.deployment(**options, request_router_config=config)(Named).bind()
    handle = deploy(app, "routed-and-killed")
    os.kill(handle.pid.remote(0).result(timeout_s=30), signal.SIGKILL)

    async def burst():
        calls = [handle.options(idempotent=True).remote(i) for i in range(20)]
        return await asyncio.gather(*calls)

    assert len(asyncio.run(burst())) == 20


def test_calls_by_a_custom_router_are_made_over_our_sessions(placed, caplog):
    response = placed.remote(0)
    assert isinstance(response, serve_grpc.DeploymentResponse)
    with pytest.raises(serve_grpc.errors.ObjectRefNotSupportedError):
        response._to_object_ref_sync()
    assert response.result(timeout_s=30)
    assert "own transport" not in caplog.text
