"""Calls that are bound to one replica: they go there, wait for it, or say that they did not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_grpc.caller.call import Call
from serve_grpc.errors import (
    DeadlineExceededError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    ServeGrpcError,
)
from serve_grpc.routing.peer import PeerState, ReplicaFacts
from tests.fakes.deliveries import delivery_of
from tests.fakes.small_fleet import SmallFleet, on_small_fleet
from tests.ray.waiting import eventually_async

FIRST, SECOND = "replica-0", "replica-1"


def unavailable(call: Call) -> ReplicaUnavailableError:
    """What a call ended with that did not start, for its replica was not available."""
    error = call.exception()
    assert isinstance(error, ReplicaUnavailableError), error
    assert not error.may_have_executed
    return error


async def running(fleet: SmallFleet, *names: str) -> None:
    await eventually_async(lambda: all(fleet.started(name) for name in names))


def settled(fleet: SmallFleet) -> None:
    """Nothing is left of calls that waited."""
    assert not fleet.router.line.bound.has_waiting
    assert (fleet.router.tally.waiting, fleet.adapter.queued) == (0, 0)


def test_bound_calls_go_to_their_replica_while_others_idle() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        calls = [fleet.call(f"{number}", SECOND, work_s=0.1) for number in range(20)]
        for call in calls:
            await call.wait_done()
        assert [fleet.started(f"{number}") for number in range(20)] == [[1]] * 20
        assert {call.replica_id for call in calls} == {SECOND}
        settled(fleet)

    on_small_fleet(main, slots=2)


def test_a_bound_call_waits_for_the_first_list() -> None:
    async def main(fleet: SmallFleet) -> None:
        there, nowhere = fleet.call("there", FIRST, work_s=0.1), fleet.call("nowhere", "replica-9")
        await asyncio.sleep(60)
        assert not there.done
        assert not nowhere.done
        fleet.tell()
        await there.wait_done()
        assert there.result() == "there"
        error = unavailable(nowhere)
        assert (error.replica_id, error.request_id) == ("replica-9", "nowhere")
        assert "not among the running replicas" in str(error)

    on_small_fleet(main)


def test_a_replica_that_is_not_listed_or_drains_takes_no_new_bound_call() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        held = [fleet.call("first", FIRST, work_s=50), fleet.call("second", SECOND, work_s=50)]
        await running(fleet, "first", "second")
        fleet.replicas[0].drain()  # before Serve says so
        fleet.unlist(fleet.replicas[1])
        await asyncio.sleep(1)
        for name, bound_to in (("a", FIRST), ("b", SECOND)):
            call = fleet.call(name, bound_to)
            await asyncio.sleep(0)
            unavailable(call)
            assert fleet.started(name) == []
        for call in held:  # it finishes what it has
            await call.wait_done()
            assert call.exception() is None

    on_small_fleet(main, slots=5)


@pytest.mark.parametrize("how", ["unlisted", "drained", "killed"])
def test_bound_calls_that_wait_end_when_their_replica_goes(how: str) -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        held = fleet.call("held", FIRST, work_s=100, is_idempotent=True)
        await running(fleet, "held")
        waiting = [fleet.call(f"{number}", FIRST) for number in range(5)]
        other = fleet.call("other", SECOND, work_s=0.1)
        await other.wait_done()
        assert fleet.adapter.queued == 5
        assert {call.replica_id for call in waiting} == {None}
        lost_s = asyncio.get_running_loop().time()
        {
            "unlisted": fleet.unlist,
            "drained": lambda replica: replica.drain(),
            "killed": fleet.kill,
        }[how](fleet.replicas[0])
        for call in waiting:
            await call.wait_done()
            unavailable(call)
        assert asyncio.get_running_loop().time() - lost_s < 1
        assert all(fleet.started(f"{number}") == [] for number in range(5))
        settled(fleet)
        if how == "killed":
            await held.wait_done()
            died = held.exception()
            assert isinstance(died, ReplicaDiedError)
            assert died.may_have_executed
            assert (died.replica_id, held.replica_id) == (FIRST, FIRST)
        assert fleet.started("held") == [0]  # nobody repeated it elsewhere

    on_small_fleet(main)


def test_calls_to_a_dead_replica_that_serve_still_lists_end_after_one_try() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        await fleet.call("before", FIRST, work_s=0.1).wait_done()
        fleet.kill(fleet.replicas[0])
        await asyncio.sleep(30)  # by now the pauses between two tries are long
        call = fleet.call("after", FIRST)
        await asyncio.sleep(0.01)
        assert not call.done
        await call.wait_done()
        assert "cannot be reached" in str(unavailable(call))

    on_small_fleet(main)


def test_a_broken_connection_is_no_dead_replica() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        held = fleet.call("held", FIRST, work_s=0.5)
        await running(fleet, "held")
        waiting = fleet.call("waiting", FIRST, work_s=0.1)
        for link in tuple(fleet.fleet.links):
            link.cut()
        await held.wait_done()
        assert isinstance(held.exception(), ReplicaDiedError)
        await waiting.wait_done()
        assert waiting.result() == "waiting"
        assert fleet.started("waiting") == [0]

    on_small_fleet(main)


def test_a_call_that_was_not_sent_when_the_session_broke_waits_for_the_same_replica() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        fleet.call("held", FIRST)
        await running(fleet, "held")
        connection: Any = fleet.router.line.replicas.connection_to(FIRST)
        connection._session.kick = lambda **_: None  # nothing more is written
        call = fleet.call("unsent", FIRST, work_s=0.1)
        assert call.replica_id == FIRST
        connection._session.cancel("broken")
        await eventually_async(lambda: call.replica_id is None)
        await call.wait_done()
        assert call.result() == "unsent"
        assert (fleet.started("unsent"), fleet.router.tally.retries) == ([0], 1)

    on_small_fleet(main, slots=2)


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_a_stream_that_is_cut_says_that_it_ran(is_idempotent: bool) -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        call = fleet.call("s", FIRST, stream=True, work_s=30, is_idempotent=is_idempotent)
        assert await call.wait_item()
        assert (call.take_item(), call.replica_id) == ("s/0", FIRST)
        fleet.kill(fleet.replicas[0])
        await call.wait_done()
        error = call.exception()
        assert isinstance(error, ReplicaDiedError)
        assert error.may_have_executed
        assert fleet.started("s") == [0]

    on_small_fleet(main)


def test_a_bound_call_that_waits_can_be_cancelled_and_has_a_deadline() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        held = fleet.call("held", FIRST, work_s=5)
        await running(fleet, "held")
        late, given_up = fleet.call("late", FIRST, timeout_s=1), fleet.call("given up", FIRST)
        last = fleet.call("last", FIRST, work_s=0.1)
        assert fleet.adapter.queued == 3
        given_up.give_up()
        await given_up.wait_done()
        assert isinstance(given_up.exception(), RequestCancelledError)
        await late.wait_done()
        error = late.exception()
        assert isinstance(error, DeadlineExceededError)
        assert not error.may_have_executed
        await last.wait_done()
        assert last.result() == held.result().replace("held", "last")
        assert fleet.started("late") == fleet.started("given up") == []
        settled(fleet)

    on_small_fleet(main)


def limited(limit: int, adapter: Any) -> Callable[..., Exception | None]:
    """`RouterAdapter.refusal` with this `max_queued_requests`."""

    def refusal(*, is_full: bool, room_to_come: Callable[[], int]) -> Exception | None:
        queued = adapter.queued - room_to_come()
        if not is_full or queued < limit:
            return None
        return BackPressureError(
            num_queued_requests=queued,
            max_queued_requests=limit,
            status_code=503,
            retry_after_s=None,
        )

    return refusal


def test_max_queued_requests_holds_whatever_room_there_is_elsewhere() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.adapter.refusal = limited(2, fleet.adapter)
        fleet.tell()
        # Its session is about to open: as many as it has slots do not count as waiting.
        calls = [fleet.call(f"{number}", FIRST, work_s=100) for number in range(8)]
        refused = [isinstance(call.exception(), BackPressureError) for call in calls]
        assert refused == [False] * 5 + [True] * 3
        await running(fleet, "0", "1", "2")
        # The others are idle, and not even connected.
        assert isinstance(fleet.call("one more", FIRST).exception(), BackPressureError)
        free = fleet.call("free", SECOND, work_s=0.1)
        await free.wait_done()
        assert free.result() == "free"
        unavailable(fleet.call("nowhere", "replica-9"))  # not: too many wait

    on_small_fleet(main, slots=3)


def test_bound_calls_and_the_line_take_turns() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        order: list[str] = []
        calls = [fleet.call("held", work_s=1)]
        await running(fleet, "held")
        for name, bound_to in (("a", None), ("b", FIRST), ("c", FIRST), ("d", None), ("e", FIRST)):
            calls.append(fleet.call(name, bound_to, work_s=0.1))
            asyncio.ensure_future(calls[-1].wait_done()).add_done_callback(
                lambda _, name=name: order.append(name)  # type: ignore[misc]
            )
        for call in calls:
            await call.wait_done()
        await eventually_async(lambda: len(order) == 5)
        assert order == ["a", "b", "c", "d", "e"]

    on_small_fleet(main, count=1)


def test_a_penalty_keeps_no_bound_call_out_and_none_counts_for_it() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        await fleet.call("first", FIRST, work_s=0.1).wait_done()
        connection: Any = fleet.router.line.replicas.connection_to(FIRST)
        connection.peer.penalise()
        call = fleet.call("bound", FIRST, work_s=0.1)
        assert call.replica_id == FIRST
        await call.wait_done()
        assert call.result() == "bound"
        assert connection.peer.penalised
        connection.peer.pardon()

    on_small_fleet(main)


def test_a_request_router_of_the_deployments_own_has_no_say() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.adapter.has_custom_request_router = True
        fleet.tell()
        call = fleet.call("bound", SECOND, work_s=0.1)
        await call.wait_done()
        assert (call.result(), fleet.started("bound")) == ("bound", [1])
        fleet.tell()
        held = fleet.call("held", SECOND, work_s=5)
        await running(fleet, "held")
        waiting = fleet.call("waiting", SECOND, work_s=0.1)
        fleet.tell()  # news do not send those that wait to Serve's router either
        await waiting.wait_done()
        assert held.done
        assert waiting.result() == "waiting"

    on_small_fleet(main)


def test_a_call_whose_request_had_to_be_stored_goes_on_to_its_replica() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        await fleet.call("opens", FIRST, work_s=0.1).wait_done()
        call = fleet.call("stored", FIRST, work_s=0.1)
        delivery = delivery_of(call)
        connection: Any = delivery._leave()  # as if it had not been sent yet
        connection.cancel(delivery._call_id)
        delivery.chooser.on_ready(delivery)
        assert (delivery.connection, call.replica_id) == (connection, FIRST)
        await call.wait_done()
        assert call.result() == "stored"
        settled(fleet)

    on_small_fleet(main)


def test_without_an_endpoint_a_bound_call_says_what_would_work() -> None:
    async def main(fleet: SmallFleet) -> None:
        early = fleet.call("early", FIRST)
        fleet.adapter.tell([ReplicaFacts("one without", "")])
        for call in (early, fleet.call("late", FIRST)):
            await call.wait_done()
            error = call.exception()
            assert type(error) is ServeGrpcError
            assert not error.may_have_executed
            assert "has no serve_grpc endpoint" in str(error)
            assert "serve_grpc.deployment" in str(error)

    on_small_fleet(main)


def test_calls_that_wait_are_told_when_the_router_closes() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        held = fleet.call("held", FIRST)
        await running(fleet, "held")
        waiting = fleet.call("waiting", FIRST)
        fleet.router.close("shut down")
        assert str(waiting.exception()) == "shut down"
        assert type(waiting.exception()) is ServeGrpcError
        assert str(fleet.call("after", FIRST).exception()) == "shut down"
        await held.wait_done()
        assert held.result() == "held"
        settled(fleet)

    on_small_fleet(main)


def test_calls_that_wait_are_told_when_serve_goes() -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.tell()
        connection: Any = fleet.router.line.replicas.connection_to(FIRST)
        fleet.fleet.delay = lambda: 100.0  # its session does not open
        waiting = fleet.call("waiting", FIRST)
        assert connection.peer.state is PeerState.CONNECTING
        fleet.adapter.is_serve_gone = True
        await waiting.wait_done()
        assert "Ray Serve was shut down" in str(waiting.exception())

    on_small_fleet(main)
