"""Calls that Serve's router assigned to a replica: when they are sent, admitted and over."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._serve.request_routers import AssignedRequest
from serve_grpc.caller.assigned import AssignedCalls
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.errors import DeadlineExceededError, ReplicaDiedError, ServeGrpcError
from serve_grpc.mailbox import mailbox_of
from serve_grpc.protocol.caller import Envelope, RequestFields
from tests.ray.waiting import eventually_async
from tests.unit.message_of_replies import Line

ENVELOPE = Envelope("predict", "pickle", "pickle", False, "", "")


class Scene(Line):
    """One replica with an open session, and the calls that were assigned to it."""

    def __init__(self) -> None:
        super().__init__()
        known = {"replica-1": self.connection}
        self.replicas: Any = SimpleNamespace(connection_to=known.get)
        self.known = known
        self.ended: list[str] = []
        mailbox = mailbox_of(asyncio.get_running_loop())
        self.calls_of_serve = AssignedCalls(self.replicas, mailbox, Settings(), ended=self.ended)
        self.connection.users = {self.calls_of_serve}

    def assign(
        self,
        name: str = "a",
        *,
        may_be_refused: bool = False,
        slot: str = "",
        deadline_s: float | None = None,
    ) -> Any:
        """One call; sent as soon as that is possible."""
        request = AssignedRequest(
            replica_id="replica-1",
            fields=RequestFields(ENVELOPE, b"", name, reserved_slot=slot),
            args=(),
            kwargs={},
            may_be_refused=may_be_refused,
            deadline_s=deadline_s,
            is_idempotent=False,
            internal_request_id="parent of assigned calls",
        )
        assigned = self.calls_of_serve.send(request)
        self.ids[name] = getattr(assigned.delivery, "_call_id", 0)  # 0 while it waits
        return assigned

    def fill(self) -> None:
        """No call has room, beside one that is answered some time."""
        self.send("filler")
        self.connection.peer.reported = self.connection.peer.facts.max_ongoing_requests


def told(assigned: Any) -> list[Any]:
    """What Serve's router is told of the end."""
    errors: list[Any] = []
    assigned.add_done_callback(errors.append)
    return errors


def test_serves_callbacks_run_after_the_message_and_may_fail() -> None:
    async def main() -> None:
        scene = Scene()
        first, second = scene.assign("a"), scene.assign("b")
        during: list[bool] = []

        def fails(_: Any) -> None:
            during.append(scene.connection.peer.in_flight == 0 and second.call.done)
            raise SystemExit("of Serve's")

        first.add_done_callback(fails)
        errors = told(first)
        scene.hear(scene.result("a"), scene.result("b"))
        assert (during, errors) == ([], [])
        await eventually_async(lambda: errors)
        assert (during, errors) == ([True], [None])
        assert told(first) == [None]  # at once, for one that has ended
        assert scene.ended == ["ok", "ok"]

    asyncio.run(main())


def test_a_call_that_may_be_refused_is_admitted_when_it_was_read() -> None:
    async def main() -> None:
        scene = Scene()
        scene.fill()
        assigned = scene.assign(may_be_refused=True)  # the replica decides, full or not
        assert len(scene.leave().requests) == 2
        admission = asyncio.ensure_future(assigned.admission())
        await asyncio.sleep(0)
        assert not admission.done()
        scene.hear(requests_read=2, ongoing=7)
        assert await admission == (True, 7)
        assert not scene.calls_of_serve
        scene.hear(scene.result("a"))
        assert scene.ended == []  # a try of a call, which is counted as a whole

    asyncio.run(main())


def test_a_call_that_is_refused_is_serves_routers_to_send_elsewhere() -> None:
    async def main() -> None:
        scene = Scene()
        assigned = scene.assign(may_be_refused=True)
        scene.leave()
        scene.hear(rejected=[scene.ids["a"]], requests_read=1, ongoing=100)
        assert await assigned.admission() == (False, 100)
        errors = told(assigned)
        assigned.cancel()
        await eventually_async(lambda: errors)
        assert isinstance(errors[0], TaskCancelledError)
        assert isinstance(assigned.call.exception(), RequestCancelledError)

    asyncio.run(main())


def test_calls_that_may_not_be_refused_wait_for_room_in_order() -> None:
    async def main() -> None:
        scene = Scene()
        scene.fill()
        waiting = [scene.assign(name) for name in "abc"]
        reserved = scene.assign("d", slot="a slot")
        assert [one.delivery.connection is None for one in (*waiting, reserved)] == [True] * 4
        assert "4 waiting" in repr(scene.calls_of_serve)  # the one with a slot is behind them
        scene.leave()
        waiting[1].delivery.cancel()
        scene.connection.peer.reported = 0
        scene.connection._tell()
        assert [request.request_id for request in scene.leave().requests] == ["a", "c", "d"]
        assert scene.connection.peer.in_flight == 1 + 3
        ids = [one.delivery._call_id for one in (waiting[0], waiting[2])]
        scene.hear(rejected=ids, requests_read=4, ongoing=100)
        assert [one.delivery.describe() for one in (waiting[0], waiting[2])] == ["queued"] * 2
        scene.hear(slot_free=True, requests_read=4, ongoing=1)
        assert [request.request_id for request in scene.leave().requests] == ["a", "c"]

    asyncio.run(main())


@pytest.mark.parametrize("was_read", [True, False])
def test_a_lost_call_is_unavailable_to_serves_router_if_it_did_not_start(was_read: bool) -> None:
    async def main() -> None:
        scene = Scene()
        assigned = scene.assign(may_be_refused=True)
        errors = told(assigned)
        if was_read:
            scene.leave()
            scene.hear(requests_read=1)
        scene.connection._session.cancel()  # type: ignore[union-attr]
        scene.connection._on_closed("cut")
        if was_read:
            assert (await assigned.admission())[0]
        else:
            with pytest.raises(ActorUnavailableError, match="cut"):
                await assigned.admission()
        died = assigned.call.exception()
        assert isinstance(died, ReplicaDiedError)
        assert died.may_have_executed is was_read
        await eventually_async(lambda: errors)
        assert isinstance(errors[0], ActorUnavailableError)
        scene.connection.retire()

    asyncio.run(main())


def test_calls_that_wait_end_when_their_replica_leaves_or_time_is_up_or_all_is_closed() -> None:
    async def main() -> None:
        scene = Scene()
        scene.fill()
        late = scene.assign("late", deadline_s=0.0)
        await eventually_async(lambda: late.call.done)
        assert isinstance(late.call.exception(), DeadlineExceededError)
        left = scene.assign("left")
        scene.known.clear()
        scene.calls_of_serve.on_replicas()
        error = left.call.exception()
        assert isinstance(error, ReplicaDiedError)
        assert (error.may_have_executed, "it has left" in str(error)) == (False, True)
        with pytest.raises(ActorUnavailableError):
            scene.assign("nobody")
        scene.known["replica-1"] = scene.connection
        closed = scene.assign("closed")
        scene.calls_of_serve.close("shut down")
        assert str(closed.call.exception()) == "shut down"
        with pytest.raises(ServeGrpcError, match="shut down"):
            scene.assign("after")
        assert not scene.calls_of_serve

    asyncio.run(main())


def test_debug_lines_tell_which_replica_a_call_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)
    waits = "request {}: waits for replica-1"

    def lines_of(name: str) -> list[str]:
        return [line for line in caplog.messages if line.startswith(f"request {name}:")]

    async def main() -> None:
        scene = Scene()
        first = scene.assign("a")
        assert [line.split(" as ")[0] for line in lines_of("a")] == ["request a: sent to replica-1"]
        scene.leave()
        scene.fill()
        scene.assign("b")
        assert lines_of("b") == [waits.format("b")]
        caplog.clear()
        scene.hear(rejected=[first.delivery._call_id], requests_read=1, ongoing=100)
        assert lines_of("a") == ["request a: turned away by replica-1", waits.format("a")]

    asyncio.run(main())
