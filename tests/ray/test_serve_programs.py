"""Pickles that do what they like in whoever loads them: one call fails, or waits, and no other."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayTaskError

from serve_grpc.errors import SerializationError
from tests.ray.apps import programs
from tests.ray.apps.programs import Exits, Waits, plain_app, programs_app
from tests.ray.waiting import eventually_async

USAGE = "usage: program"


@pytest.fixture(scope="module")
def outer(deploy):
    return deploy(programs_app(), "programs")


def check_alive(outer):
    """The process can still call, and the replicas are the same as before."""
    return [
        outer.pid.remote().result(timeout_s=20),
        outer.options(_by_reference=True).pid.remote().result(timeout_s=20),
    ]


def test_what_ends_a_process_that_loads_it_fails_one_call(outer):
    pids = check_alive(outer)
    with pytest.raises(RayTaskError) as raised:
        outer.fail.remote("Exits").result(timeout_s=20)
    for part in ("Exits", "the handler's own words", "in fail"):
        assert part in str(raised.value)
    assert USAGE in str(raised.value.cause)
    with pytest.raises(SerializationError, match=USAGE):
        outer.value.remote("Exits").result(timeout_s=20)
    with pytest.raises(SerializationError, match=USAGE):
        outer.take.remote(Exits("mine")).result(timeout_s=20)
    stream = outer.options(stream=True).items.remote("Exits")
    assert next(stream) == 0
    with pytest.raises(SerializationError, match=USAGE):
        next(stream)
    assert next(stream) == 2
    assert check_alive(outer) == pids


def test_what_ends_a_process_that_loads_it_fails_one_call_that_is_awaited(outer):
    async def main():
        with pytest.raises(RayTaskError, match="the handler's own words"):
            await outer.fail.remote("Exits")
        with pytest.raises(SerializationError, match=USAGE):
            await outer.value.remote("Exits")
        stream = outer.options(stream=True).items.remote("Exits")
        assert await stream.__anext__() == 0
        with pytest.raises(SerializationError, match=USAGE):
            await stream.__anext__()
        return [item async for item in stream]

    assert asyncio.run(main()) == [2]


@pytest.mark.parametrize(
    ("method", "error"),
    [("fail", "RayTaskError"), ("value", "SerializationError"), ("take", "SerializationError")],
)
def test_a_replica_that_loads_it_lives_on(outer, method, error):
    pids = check_alive(outer)
    told = outer.through.remote(method, "Exits").result(timeout_s=20)
    assert error in told
    assert USAGE in told or "the handler's own words" in told
    assert check_alive(outer) == pids


def test_an_import_that_takes_its_time_holds_up_no_other_call(outer):
    programs.IS_LOADING.clear()
    programs.MAY_LOAD.clear()

    async def main():
        failing = asyncio.ensure_future(wait_for_failure())
        try:
            await eventually_async(programs.IS_LOADING.is_set)
            for _ in range(3):
                assert isinstance(await asyncio.wait_for(outer.pid.remote(), 20), int)
            assert not failing.done()
        finally:
            programs.MAY_LOAD.set()
        await failing

    async def wait_for_failure():
        with pytest.raises(Waits, match="the handler's own words"):
            await outer.fail.remote("Waits")

    asyncio.run(main())


def test_over_serves_own_transport_it_fails_one_call_as_well(deploy):
    plain = deploy(plain_app(), "plain-programs")
    pid = plain.pid.remote().result(timeout_s=20)
    with pytest.raises(SerializationError, match=USAGE):
        plain.value.remote("Exits").result(timeout_s=20)
    with pytest.raises(SerializationError, match=USAGE):
        list(plain.options(stream=True).items.remote("Exits"))
    assert plain.pid.remote().result(timeout_s=20) == pid


def test_a_response_over_serves_own_transport_that_is_a_program_fails_the_call_it_is_passed_to(
    outer, deploy
):
    plain = deploy(plain_app(), "plain-programs")
    with pytest.raises(SerializationError, match=USAGE):
        outer.take.remote(plain.value.remote("Exits")).result(timeout_s=20)
    assert isinstance(outer.pid.remote().result(timeout_s=20), int)
