"""Calls that are bound to one replica, on a real Ray Serve: its state, its death, its drain."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.config import RequestRouterConfig

import serve_grpc
from serve_grpc.errors import ReplicaDiedError, ReplicaUnavailableError, ServeGrpcError
from tests.ray.apps.counting import Counting, Pinning
from tests.ray.apps.gated import Board
from tests.ray.apps.plain import Plain
from tests.ray.apps.routed import ByFirstArgument, Named
from tests.ray.waiting import eventually

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 40,
    "health_check_period_s": 0.5,
}
REPLICAS = 3
ARGUMENTS = {"placed": (0,)}
"""Where a request router wants some."""
COUNTING = serve_grpc.deployment(**OPTIONS, num_replicas=REPLICAS, max_ongoing_requests=20)(
    Counting
)


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture(scope="module")
def pinning(deploy):
    app = serve_grpc.deployment(**OPTIONS)(Pinning).bind(COUNTING.bind())
    return deploy(app, "pinning")


@pytest.fixture
def counting(pinning):
    handle = serve_grpc.get_deployment_handle("Counting", "pinning").options(_by_reference=False)
    eventually(lambda: len(ids_of(handle)) == REPLICAS, timeout_s=60)
    return handle


def ids_of(handle):
    """The replicas that the handle knows."""
    handle.pid.remote(*ARGUMENTS.get(handle.app_name, ())).result(timeout_s=20)
    return {replica.replica_id for replica in serve_grpc.handle_statistics(handle).replicas}


def unavailable(response):
    with pytest.raises(ReplicaUnavailableError) as raised:
        response.result(timeout_s=20)
    assert not raised.value.may_have_executed
    return raised.value


def test_the_id_of_a_response_is_serves_and_options_take_it(counting):
    seen = {}
    for _ in range(40):
        response = counting.add.remote()
        served, _ = response.result(timeout_s=20)
        seen[served] = response.replica_id
    assert all(served == told for served, told in seen.items())
    assert set(seen) == ids_of(counting)
    for replica_id in seen:
        bound = counting.options(replica_id=replica_id)
        answers = [bound.add.remote().result(timeout_s=20) for _ in range(10)]
        first = answers[0][1]
        assert answers == [(replica_id, first + n) for n in range(10)]
        stream = bound.options(stream=True).add_each.remote(3)
        assert list(stream) == [(replica_id, first + 10 + n) for n in range(3)]
        assert stream.replica_id == replica_id


def test_all_calls_of_a_pin_see_one_count_while_others_call(counting):
    async def main():
        before = {id_: (await counting.options(replica_id=id_).add.remote())[1] for id_ in ids}
        async with counting.pin() as pinned, counting.pin() as another:
            mine = [pinned.add.remote() for _ in range(100)]
            others = [another.add.remote() for _ in range(100)]
            mine.append(pinned.options(timeout_s=30).add.remote(mine[0]))  # composed
            answers = [await response for response in (*mine, *others)]
        by_replica = {}
        for replica_id, count in answers:
            by_replica.setdefault(replica_id, []).append(count)
        assert len(by_replica) <= 2
        assert len({replica_id for replica_id, _ in answers[:101]}) == 1
        assert {response.replica_id for response in mine} == {answers[0][0]}
        for replica_id, counts in by_replica.items():
            first = before[replica_id] + 1
            assert sorted(counts) == list(range(first, first + len(counts)))

    ids = ids_of(counting)
    asyncio.run(main())


def test_replicas_pin_and_bound_handles_travel(pinning, counting):
    answers = pinning.add.remote(5).result(timeout_s=20)
    (replica_id,) = {replica_id for replica_id, _ in answers}
    first = answers[0][1]
    assert [count for _, count in answers] == list(range(first, first + 5))
    bound = counting.options(replica_id=replica_id)
    for response in (pinning.add_at.remote(replica_id), pinning.add_with.remote(bound)):
        assert response.result(timeout_s=20)[0] == replica_id
    with pytest.raises(ReplicaUnavailableError) as raised:
        pinning.add_at.remote("nowhere").result(timeout_s=20)
    assert isinstance(raised.value, RayTaskError)
    assert raised.value.cause.replica_id == "nowhere"
    assert not raised.value.cause.may_have_executed


def test_an_id_that_is_not_running_fails_at_once_and_nothing_else_does(counting):
    nowhere = counting.options(replica_id="nowhere", idempotent=True)
    assert unavailable(nowhere.add.remote()).replica_id == "nowhere"
    with pytest.raises(ReplicaUnavailableError):
        next(nowhere.options(stream=True).add_each.remote(1))
    fresh = serve_grpc.wrap(serve.get_deployment_handle("Counting", "pinning"))
    unavailable(fresh.options(_by_reference=False, replica_id="nowhere").add.remote())
    assert counting.add.remote().result(timeout_s=20)


def test_a_killed_replica_ends_its_pin(counting, board):
    async def main():
        async with counting.options(idempotent=True).pin() as pinned:
            pid = await pinned.pid.remote()
            held = pinned.remote(board.path, "held")
            await asyncio.to_thread(eventually, lambda: board.count("start"))
            where = held.replica_id
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ReplicaDiedError) as died:
                await held
            assert died.value.may_have_executed
            assert died.value.replica_id == where
            for _ in range(3):  # listed yet, or not
                with pytest.raises(ReplicaUnavailableError) as raised:
                    await asyncio.wait_for(pinned.pid.remote(), 20)
                assert (raised.value.replica_id, raised.value.may_have_executed) == (where, False)
                await asyncio.sleep(0.5)
        async with counting.pin() as pinned:
            assert await pinned.pid.remote() != pid
        return where

    where = asyncio.run(main())
    assert board.count("start") == 1  # repeated nowhere
    eventually(lambda: where not in ids_of(counting), timeout_s=40)


def test_a_replica_that_drains_finishes_what_it_has_and_takes_no_bound_call(deploy, board):
    scaled = COUNTING.options(num_replicas=2)
    handle = deploy(scaled.bind(), "drained")
    eventually(lambda: len(ids_of(handle)) == 2, timeout_s=40)
    held = {
        id_: handle.options(replica_id=id_).remote(board.path, "held") for id_ in ids_of(handle)
    }
    eventually(lambda: board.count("start") == 2)
    serve._run(
        scaled.options(num_replicas=1).bind(), name="drained", route_prefix=None, _blocking=False
    )
    bound = {id_: handle.options(replica_id=id_, timeout_s=20) for id_ in held}

    def that_left():
        ended = {id_: each.pid.remote()._call for id_, each in bound.items()}
        assert all(call.wait_done_blocking(20) for call in ended.values())
        errors = {id_: call.exception() for id_, call in ended.items()}
        return [id_ for id_, e in errors.items() if isinstance(e, ReplicaUnavailableError)]

    (gone,) = eventually(that_left, timeout_s=40)
    assert board.count("end") == 0  # it is still there
    board.release()
    assert [response.result(timeout_s=20) for response in held.values()] == ["held"] * 2
    assert held[gone].replica_id == gone


def test_where_serve_carries_calls_they_cannot_be_bound(deploy, counting):
    by_reference = counting.options(_by_reference=True)
    assert by_reference.add.remote().replica_id is None
    with pytest.raises(ValueError, match="_by_reference=False"):
        by_reference.options(replica_id="any")
    plain = deploy(serve.deployment(ray_actor_options={"num_cpus": 0.01})(Plain).bind(), "unopted")
    response = plain.remote(1)
    assert response.result(timeout_s=20) == 1
    assert response.replica_id is None
    with pytest.raises(ServeGrpcError, match=r"has no serve_grpc endpoint.*serve_grpc.deployment"):
        plain.options(replica_id="any").remote(1)
    local = serve_grpc.run(
        serve_grpc.deployment(Plain).bind(), name="local", _local_testing_mode=True
    ).options(_by_reference=False)
    with pytest.raises(ServeGrpcError, match="local testing mode"):
        local.options(replica_id="any").remote(1)


def test_a_bound_call_passes_a_request_router_by_and_a_pin_asks_it(deploy, tmp_path):
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument,
        request_router_kwargs={"path": str(tmp_path / "notes")},
    )
    named = serve_grpc.deployment(**OPTIONS, num_replicas=2, request_router_config=config)(Named)
    handle = deploy(named.bind(), "placed")
    ids = eventually(lambda: len(i := ids_of(handle)) == 2 and sorted(i), timeout_s=40)
    for replica_id in ids:
        bound = handle.options(replica_id=replica_id)
        for place in (0, 1):
            response = bound.remote(place)
            assert response.result(timeout_s=20) == response.replica_id == replica_id
    routed = handle.remote(1)
    assert routed.result(timeout_s=20) == routed.replica_id == ids[1]

    async def main():
        async with handle.pin() as pinned:
            assert await pinned.remote(1) == ids[0]  # the router chose for a call without arguments
        async with handle.choose_replica(1) as selection:
            response = handle.dispatch(selection, 1)
            assert await response == response.replica_id == selection.replica_id

    asyncio.run(main())
