"""A replica's dispatcher over sessions without a wire: slots, lines to follow, and what is left.

Serve's semaphore and counters are real, and so are both session machines; only the carrier is
played: what one machine says the other hears at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._generated.replica_pb2 import CallRequest, Error
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.protocol.caller import CallEventKind, Received
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.serialization import get_serializer
from tests.ray.waiting import eventually_async
from tests.unit.sessions import UNARY, fields, open_pair

PICKLE = get_serializer("pickle")
ENVELOPE = UNARY._replace(response_serializer="pickle")


class Line:
    """A caller's session and the replica's, and what the caller has heard."""

    def __init__(self, dispatcher: ReplicaDispatcher, carrier: str = "grpc") -> None:
        self.carrier = carrier
        self.caller, self.session = open_pair()
        self.counters = Counters()
        self.heard: list[Received[str]] = []
        self._dispatcher = dispatcher

    def kick_item(self) -> None:
        self.kick()

    def kick(self) -> None:
        """As the carrier's: what waits to be written is written."""
        while self.session.outbox:
            self.heard.append(self.caller.receive(self.session.outbox.take()))

    def send(self, *names: str, **changes: Any) -> list[int]:
        """So many calls, in one message."""
        payload = PICKLE.dump_request((), {})
        changes = {"envelope": ENVELOPE, **changes}
        ids = [
            self.caller.request(name, fields(payload, request_id=name, **changes)) for name in names
        ]
        self.say()
        return ids

    def say(self) -> None:
        """Carry what the caller's session has to say."""
        while self.caller.outbox:
            arrival = self.session.receive(self.caller.outbox.take())
            stream: Any = self
            self._dispatcher.on_arrival(stream, arrival)
            self.kick()

    def cancel(self, call_id: int) -> None:
        self.caller.cancel(call_id)
        self.say()

    def close(self) -> None:
        stream: Any = self
        self._dispatcher.on_session_closed(stream, self.session.close())

    @property
    def results(self) -> list[str]:
        """Calls that came back with a result."""
        events = [event for received in self.heard for event in received.events]
        return [event.call for event in events if event.kind == CallEventKind.RESULT]

    @property
    def errors(self) -> list[Error]:
        events = [event for received in self.heard for event in received.events]
        return [event.error for event in events if event.error is not None]

    @property
    def rejected(self) -> list[str]:
        return [call for received in self.heard for call in received.rejected]

    @property
    def slots_told(self) -> int:
        return sum(received.slot_free for received in self.heard)


class House:
    """A replica with one slot, or more, whose code runs until `go`."""

    def __init__(self, slots: int = 1) -> None:
        self.go = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.begun = 0
        self.adapter: ReplicaAdapter = new_replica_adapter(self._hold, max_ongoing_requests=slots)
        self.dispatcher = ReplicaDispatcher(self.adapter, Settings())

    async def _hold(self) -> str:
        self.has_begun.set()
        self.begun += 1
        await self.go.wait()
        return "done"

    def line(self) -> Line:
        return Line(self.dispatcher)


def run(test: Callable[[House], Awaitable[None]], slots: int = 1) -> None:
    async def main() -> None:
        house = House(slots)
        try:
            await test(house)
        finally:
            await cancel_tasks()
            house.adapter._access_log.close()

    asyncio.run(main())


def lines_of(caplog: pytest.LogCaptureFixture, request_id: str) -> list[str]:
    """What was logged of one request, without its id."""
    start = f"request {request_id}: "
    texts = [record.getMessage() for record in caplog.records]
    return [text.removeprefix(start) for text in texts if text.startswith(start)]


def test_one_request_can_be_followed_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)

    async def test(house: House) -> None:
        line = house.line()
        first, _ = line.send("first", "second")
        await house.has_begun.wait()
        line.cancel(first)
        await eventually_async(lambda: house.dispatcher.ongoing() == 0)
        house.go.set()
        line.send("third")
        await eventually_async(lambda: line.results == ["third"])

    run(test)
    assert lines_of(caplog, "first")[:3] == [
        "has a slot, call 1 of session replica-1/7",
        "started, method predict",
        "cancelled (caller), called",
    ]
    (ended,) = lines_of(caplog, "first")[3:]
    assert ended.startswith("ended, CANCELLED after ")
    assert lines_of(caplog, "second") == ["turned away, 1 run"]
    has_slot, started, ended = lines_of(caplog, "third")
    assert (has_slot, started) == (
        "has a slot, call 3 of session replica-1/7",
        "started, method predict",
    )
    assert ended.startswith("ended, OK after ")


def test_a_request_that_stands_by_and_is_late_is_followed_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)

    async def test(house: House) -> None:
        for _ in range(2000):
            house.dispatcher.admission.standby.on_duration(0.01)
        line = house.line()
        line.send("runs", "waits")
        await eventually_async(lambda: line.rejected == ["waits"])
        assert house.dispatcher.rejections == 1
        house.go.set()
        await eventually_async(lambda: line.slots_told == 1)

    run(test)
    assert lines_of(caplog, "waits") == ["stands by for a slot", "turned away, 1 run"]


def test_nothing_is_logged_of_requests_where_nobody_listens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)

    async def test(house: House) -> None:
        house.go.set()
        line = house.line()
        line.send("first", "second")
        await eventually_async(lambda: line.results == ["first"])

    run(test)
    assert (lines_of(caplog, "first"), lines_of(caplog, "second")) == ([], [])


def test_a_handler_of_the_log_that_raises_costs_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(logging.Handler):
        def handle(self, _: logging.LogRecord) -> bool:
            raise SystemExit("no log today")

    logger, broken = logging.getLogger(LOGGER_NAME), Broken()

    async def test(house: House) -> None:
        house.go.set()
        line = house.line()
        caplog.set_level(logging.DEBUG, LOGGER_NAME)
        logger.addHandler(broken)
        try:
            line.send("first", "second")
            await eventually_async(lambda: line.results == ["first"])
            assert (line.rejected, house.dispatcher.ongoing()) == (["second"], 0)
        finally:
            logger.removeHandler(broken)

    run(test)


def test_sessions_that_were_turned_away_are_told_one_for_each_slot_in_their_order() -> None:
    async def test(house: House) -> None:
        runs, first, second = house.line(), house.line(), house.line()
        runs.send("runs")
        first.send("a", "b")
        second.send("c")
        assert (first.rejected, second.rejected) == (["a", "b"], ["c"])
        house.go.set()
        await eventually_async(lambda: runs.results == ["runs"])
        assert (first.slots_told, second.slots_told) == (1, 0)
        first.send("a")
        await eventually_async(lambda: first.results == ["a"])
        assert (first.slots_told, second.slots_told) == (1, 1)

    run(test)


def test_a_session_that_is_over_is_told_nothing_and_its_calls_are_cancelled() -> None:
    async def test(house: House) -> None:
        runs, away = house.line(), house.line()
        runs.send("runs")
        away.send("away")
        await asyncio.sleep(0)
        away.close()
        runs.close()
        await eventually_async(lambda: house.dispatcher.ongoing() == 0)
        assert dict(house.dispatcher.outcomes) == {"CANCELLED": 1}
        assert (runs.results, away.slots_told) == ([], 0)

    run(test)


def test_a_slot_that_nobody_reserved_fails_its_request_alone() -> None:
    async def test(house: House) -> None:
        house.adapter._replica._reserved_slots = {"mine"}
        house.go.set()
        line = house.line()
        line.send("wrong", reserved_slot="another's")
        line.send("right")
        await eventually_async(lambda: line.results == ["right"])
        (error,) = line.errors
        assert error.code == Error.INVALID_REQUEST
        assert 'no slot is reserved by the name "another\'s"' in error.message
        assert house.adapter._replica._reserved_slots == {"mine"}

    run(test)


def test_requests_before_one_that_cannot_be_admitted_run_and_give_their_slots_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(house: House) -> None:
        house.go.set()
        line = house.line()
        take_slot = house.dispatcher.admission.take_slot
        answers = iter([take_slot])

        def once(reserved_slot: str) -> bool:
            for answer in answers:
                return answer(reserved_slot)
            raise RuntimeError("Serve's counters are broken")

        with monkeypatch.context() as patch:
            patch.setattr(house.dispatcher.admission, "take_slot", once)
            with pytest.raises(RuntimeError, match="broken"):
                line.send("first", "second")
        await eventually_async(lambda: house.dispatcher.ongoing() == 0)
        line.kick()
        assert line.results == ["first"]

    run(test)


def test_the_plain_door_is_told_at_once_that_there_is_no_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)

    async def test(house: House) -> None:
        house.line().send("runs")
        request = CallRequest(request_id="plain", payload=b"")
        call = PlainCall(request, is_stream=False, timeout_s=None, trace={})
        house.dispatcher.on_plain_call(call)
        error = await asyncio.wait_for(call.next(), 10)
        assert isinstance(error, Error)
        assert error.code == Error.OVERLOADED
        assert house.dispatcher.rejections == 1

    run(test)
    assert lines_of(caplog, "plain") == ["turned away at the plain door"]


@pytest.mark.parametrize(("carrier", "at_once"), [("grpc", 64), ("local", 16)])
def test_of_a_full_message_fewer_requests_start_in_a_turn_over_the_lane(
    carrier: str, at_once: int
) -> None:
    """Where a message costs little, replies of the first ones leave sooner (decision 0007)."""

    async def test(house: House) -> None:
        Line(house.dispatcher, carrier).send(*(f"r{number}" for number in range(80)))
        seen = set()
        while house.begun < 80:
            await asyncio.sleep(0)
            seen.add(house.begun)
        assert min(seen - {0}) == at_once
        house.go.set()

    run(test, slots=80)


def test_a_dispatcher_shows_what_runs_and_who_waits() -> None:
    async def test(house: House) -> None:
        line = house.line()
        line.send("runs", "waits")
        shown = repr(house.dispatcher)
        assert "1 running over 1 sessions" in shown
        assert "1 waiting to be told" in shown

    run(test)
