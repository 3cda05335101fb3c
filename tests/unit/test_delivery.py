"""The way of one call: what it holds and gives back, how it ends, what the log tells of it."""

from __future__ import annotations

import asyncio
import logging
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_grpc._generated.replica_pb2 import Drain, Error, Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.lending import Loan
from serve_grpc.caller.outcomes import Expired, Outcome, Raised, Result, TooLarge
from serve_grpc.config import LOGGER_NAME
from serve_grpc.debugging import is_debugged
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaError,
    SerializationError,
    ServeGrpcError,
)
from serve_grpc.mailbox import mailbox_of
from tests.fakes.deliveries import Chooser
from tests.unit.message_of_replies import Line
from tests.unit.sessions import fields
from tests.unit.sessions_loop import TransportLoop


def new_delivery(transport: TransportLoop, **changes: Any) -> Delivery:
    """Of a call that was not sent."""
    mailbox = mailbox_of(transport.loop)
    call = Call(fields(), mailbox=mailbox, response_loads=pickle.loads)
    return Delivery(call, Chooser(), **changes)


class Ref:
    """Stands for an ObjectRef."""


def test_an_answered_call_does_not_keep_what_it_sent(transport: TransportLoop) -> None:
    delivery, failed = new_delivery(transport), new_delivery(transport)
    for one in (delivery, failed):
        one.call.fields.payload = b"x" * 1000
        one.make_serve_call = lambda: None
        one.loan = Loan((Ref(),))
    refs = [weakref.ref(one.loan.refs[0]) for one in (delivery, failed) if one.loan]
    transport.run(delivery.end, Result(pickle.dumps(1)))
    transport.run(failed.end, Raised(ValueError()))
    held = [(one.call.fields.payload, one.make_serve_call) for one in (delivery, failed)]
    assert held == [(b"", None)] * 2
    assert [ref() for ref in refs] == [None, None]


def test_a_call_that_is_over_and_its_way_are_no_circle(transport: TransportLoop) -> None:
    delivery = new_delivery(transport)
    transport.run(delivery.end, Result(b""))
    assert delivery.call.delivery is None


@pytest.mark.parametrize("kind", [DeadlineExceededError, MessageTooLargeError])
@pytest.mark.parametrize("was_started", [False, True])
def test_an_error_after_a_lost_try_tells_of_that_try(
    transport: TransportLoop, kind: type[ServeGrpcError], was_started: bool
) -> None:
    outcome: Outcome = Expired() if kind is DeadlineExceededError else TooLarge(2, 1, "request")
    delivery = new_delivery(transport)
    call = delivery.call
    delivery.may_have_executed = was_started
    transport.run(delivery.end, outcome)
    with pytest.raises(kind) as raised:
        call.result()
    assert raised.value.may_have_executed is was_started


def test_a_deadline_timer_is_dropped_with_the_call(transport: TransportLoop) -> None:
    delivery = new_delivery(transport)
    transport.run(delivery.expire_after, 3600)
    timer = delivery._expiry
    assert timer is not None
    transport.run(delivery.end, Result(pickle.dumps(1)))
    assert timer.cancelled()
    assert delivery._expiry is None


def test_a_call_ends_once_and_is_counted_once(transport: TransportLoop) -> None:
    ended: list[str] = []
    delivery = new_delivery(transport, ended=ended)
    transport.run(
        delivery.end, Raised(BackPressureError(num_queued_requests=1, max_queued_requests=1))
    )
    assert not delivery.end(Result(b""))
    transport.run(delivery.cancel)
    transport.run(delivery.withdraw, Expired())
    assert ended == ["back_pressure"]


class Stage:
    """Notes who leaves it."""

    may_have_started = True

    def __init__(self) -> None:
        self.left: list[Delivery] = []
        self.granted: list[tuple[int, int]] = []

    def withdraw(self, delivery: Delivery) -> None:
        self.left.append(delivery)

    def grant(self, items: int, bytes_: int) -> None:
        self.granted.append((items, bytes_))

    def describe(self) -> str:
        return "on a stage"


@pytest.mark.parametrize("how", ["end", "cancel", "deadline"])
def test_whatever_ends_a_call_takes_it_off_its_stage_once(
    transport: TransportLoop, how: str
) -> None:
    delivery, stage = new_delivery(transport), Stage()
    call, delivery.stage = delivery.call, stage
    assert "on a stage" in repr(call)
    transport.run(delivery.grant, 1, 2)
    if how == "end":
        transport.run(delivery.end, Result(b""))
    elif how == "cancel":
        call.give_up()
    else:
        transport.run(delivery.expire_after, 0)
        assert call.wait_done_blocking(30)
    transport.run(delivery.cancel)
    assert (stage.left, stage.granted) == ([delivery], [(1, 2)])
    if how == "cancel":
        assert isinstance(call.exception(), RequestCancelledError)
    if how == "deadline":
        error = call.exception()
        assert isinstance(error, DeadlineExceededError)
        assert error.may_have_executed  # as the stage says


def test_a_call_whose_giving_back_fails_is_told_of_its_end(transport: TransportLoop) -> None:
    class Failing(Chooser):
        def on_end(self, delivery: Delivery, outcome: Outcome) -> None:
            raise ValueError("no")

    delivery = new_delivery(transport)
    call, delivery.chooser = delivery.call, Failing()
    with pytest.raises(ValueError, match="no"):
        delivery.end(Result(pickle.dumps("there")))
    assert call.result() == "there"


# ------------------------------------------------------------ over a session


@pytest.mark.parametrize("how", ["answered", "failed", "rejected", "drained", "lost", "cancelled"])
def test_each_end_gives_the_slot_back_once(how: str) -> None:
    async def main() -> None:
        line = Line()
        for name in "ab":
            line.send(name)
        peer = line.connection.peer
        assert peer.in_flight == 2
        line.leave()
        if how == "answered":
            line.hear(line.result("a"))
        elif how == "failed":
            error = Error(code=Error.INTERNAL, message="no")
            line.hear(Reply(id=line.ids["a"], kind=Reply.ERROR, error=error))
        elif how == "rejected":
            line.hear(rejected=[line.ids["a"]])
        elif how == "drained":
            line.hear(drain=Drain(requests_read=1))  # "b" is beyond
        elif how == "lost":
            line.connection._on_closed("cut")
        else:
            line.deliveries["a"].cancel()
        assert peer.in_flight == (0 if how == "lost" else 1)
        for delivery in line.deliveries.values():
            delivery.cancel()
        assert peer.in_flight == 0

    asyncio.run(main())


REPLICAS_WORDS = {
    Error.MESSAGE_TOO_LARGE: MessageTooLargeError,
    Error.SERIALIZATION: SerializationError,
    Error.DEADLINE_EXCEEDED: DeadlineExceededError,
    Error.INTERNAL: ReplicaError,
    Error.CANCELLED: RequestCancelledError,
}


@pytest.mark.parametrize("code", list(REPLICAS_WORDS), ids=Error.Code.Name)
def test_what_the_replica_says_is_raised_where_it_is_consumed(code: Any) -> None:
    async def main() -> None:
        line = Line()
        call = line.send("a")
        error = Error(code=code, message="its words", may_have_executed=True)
        line.hear(Reply(id=line.ids["a"], kind=Reply.ERROR, error=error))
        raised = call.exception()
        assert type(raised) is REPLICAS_WORDS[code]
        assert raised is not call.exception()
        if isinstance(raised, ServeGrpcError):
            named = (raised.request_id, raised.replica_id, raised.may_have_executed)
            assert named == ("a", "replica-1", True)

    asyncio.run(main())


# ------------------------------------------------------------ the debug log


@pytest.fixture
def debug_lines() -> Iterator[list[str]]:
    """What is logged, while debug lines are wanted."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.setLevel(before)
    logger.removeHandler(handler)


def test_a_log_handler_that_fails_costs_nothing() -> None:
    logger, failing = logging.getLogger(LOGGER_NAME), logging.Handler()
    failed: list[bool] = []

    def emit(_: logging.LogRecord) -> None:
        failed.append(True)
        raise SystemExit("a program")

    failing.emit = emit  # type: ignore[method-assign]
    before = logger.level

    async def main() -> None:
        line = Line()
        calls = [line.send(name) for name in "ab"]
        line.hear(line.result("a"), line.result("b"))
        assert [call.result() for call in calls] == [b"a", b"b"]

    logger.addHandler(failing)
    logger.setLevel(logging.DEBUG)
    try:
        asyncio.run(main())
    finally:
        logger.setLevel(before)
        logger.removeHandler(failing)
    assert failed


def test_without_debug_lines_nothing_is_logged_of_a_call(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with caplog.at_level(logging.INFO, logger=LOGGER_NAME):
            line = Line()
            line.send("a")
            assert not is_debugged()
            line.hear(line.result("a"))

    asyncio.run(main())
    assert caplog.records == []
