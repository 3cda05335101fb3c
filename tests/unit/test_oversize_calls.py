"""Calls whose request or result is over the limit: while it is put or fetched, and how they end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from serve_grpc.caller import oversize
from serve_grpc.caller.assigned import AssignedCalls
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.lending import Borrowed, Loan
from serve_grpc.caller.outcomes import Cancelled, GivenUp, Result, TooLarge
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.errors import MessageTooLargeError, ServeGrpcError
from serve_grpc.payload import Segments, Stored, is_stored, joined, refs_of
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.storing import StoreError
from tests.fakes.deliveries import Chooser
from tests.ray.waiting import eventually_async
from tests.unit.message_of_replies import Line
from tests.unit.sessions import (
    LIMIT,
    fields,
)
from tests.unit.test_assigned import Scene

SIZE = 3 * LIMIT
PLACE = Stored(SIZE, b"id", b"owner")


def stored(*others: Any, place: Stored = PLACE) -> Segments:
    """A payload that is in the store; its refs are words here."""
    return Segments((), ("object", *others), place)


# ------------------------------------------------------------ at the caller: requests


class Peer(Line):
    """A replica that takes requests of at most `LIMIT` bytes, and larger ones by the store."""

    def __init__(self, *, takes_stored: bool = True) -> None:
        super().__init__()
        self.connection.takes_stored = takes_stored
        self.of_ready = Chooser()

    def deliver(self, size: int = SIZE) -> Delivery:
        call = Call(fields(b"x" * size), mailbox=self._mailbox, response_loads=joined)
        return Delivery(call, self.of_ready)


class Store:
    """Stands for Ray's. `put` and `fetch` end when `go` is set, as `fails` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        self.fails: StoreError | None = None
        self.puts: list[Any] = []
        self.cancelled = 0
        monkeypatch.setattr(oversize, "put", self.put)
        monkeypatch.setattr(oversize, "fetch", self.fetch)

    async def put(self, payload: Any) -> Segments:
        self.puts.append(payload)
        await self._wait()
        return stored(*refs_of(payload))

    async def fetch(self, ref: Any) -> Segments:
        await self._wait()
        return Segments((b"of ", ref.encode()))

    async def _wait(self) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails is not None:
            raise self.fails


def test_a_request_is_put_once_and_sent_when_its_chooser_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        peer, fake = Peer(), Store(monkeypatch)
        delivery = peer.deliver()
        assert not delivery.send(peer.connection)
        assert (delivery.done, delivery.describe()) == (False, "storing its request")
        assert (peer.connection.peer.in_flight, peer.of_ready.ready) == (0, [])
        fake.go.set()
        await eventually_async(lambda: peer.of_ready.ready)
        assert peer.of_ready.ready == [delivery]
        assert delivery.stage is None
        assert delivery.send(peer.connection)
        (request,) = peer.leave().requests
        assert (request.payload, request.stored.size) == (b"", SIZE)
        assert delivery.loan is not None
        assert delivery.loan.refs == ("object",)
        delivery.on_rejected()
        assert len(fake.puts) == 1

    asyncio.run(main())


def test_refs_of_a_request_that_was_sent_before_are_lent_with_what_it_is_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        peer, fake = Peer(), Store(monkeypatch)
        delivery = peer.deliver()
        delivery.call.fields.payload = Segments((b"x" * SIZE,), ("named",))
        delivery.loan = Loan(("named",))
        fake.go.set()
        assert not delivery.send(peer.connection)
        await eventually_async(lambda: peer.of_ready.ready)
        assert delivery.loan.refs == ("object", "named")
        delivery.loan = None

    asyncio.run(main())


@pytest.mark.parametrize("is_put", [False, True])
def test_a_replica_that_takes_none_refuses_the_call(
    monkeypatch: pytest.MonkeyPatch, is_put: bool
) -> None:
    async def main() -> None:
        peer, fake = Peer(takes_stored=False), Store(monkeypatch)
        delivery = peer.deliver()
        if is_put:  # for another one, which was lost
            delivery.call.fields.payload = stored()
        assert not delivery.send(peer.connection)
        outcome = delivery.call.outcome
        assert type(outcome) is TooLarge
        assert (outcome.size, outcome.limit, outcome.direction) == (SIZE, LIMIT, "request")
        assert not outcome.may_have_executed
        assert fake.puts == []

    asyncio.run(main())


def test_a_request_that_cannot_be_put_fails_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        peer, fake = Peer(), Store(monkeypatch)
        delivery = peer.deliver()
        fake.fails = StoreError("the store is full")
        fake.go.set()
        delivery.send(peer.connection)
        with pytest.raises(ServeGrpcError, match=r"3145728 bytes.*the store is full") as raised:
            await delivery.call
        assert not raised.value.may_have_executed
        assert raised.value.request_id == "request"

    asyncio.run(main())


def test_the_log_tells_where_a_call_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        Store(monkeypatch)
        peer = Peer()
        delivery = peer.deliver()
        delivery.send(peer.connection)
        delivery.cancel()
        await asyncio.sleep(0)

    with caplog.at_level(logging.DEBUG, LOGGER_NAME):
        asyncio.run(main())
    assert "request request: storing its request" in caplog.messages


def test_a_call_that_is_given_up_meanwhile_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        peer, fake = Peer(), Store(monkeypatch)
        delivery = peer.deliver()
        delivery.send(peer.connection)
        await eventually_async(lambda: fake.puts)
        delivery.cancel()
        await eventually_async(lambda: fake.cancelled)
        assert type(delivery.call.outcome) is Cancelled
        fake.go.set()
        assert peer.of_ready.ready == []

    asyncio.run(main())


def test_a_call_of_serves_router_goes_to_its_replica_once_it_is_put(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        scene, fake = Scene(), Store(monkeypatch)
        scene.connection.takes_stored = True
        settings = Settings(max_message_bytes=10, stores_oversize=True)
        scene.connection.peer_max_message_bytes = 10
        replicas: Any = scene.replicas
        scene.calls_of_serve = AssignedCalls(replicas, scene._mailbox, settings, ended=scene.ended)
        assigned = scene.assign()
        assert assigned.delivery.describe() == "storing its request"
        fake.go.set()
        await eventually_async(lambda: assigned.delivery.connection)
        (request,) = scene.leave().requests
        assert request.stored.size == SIZE
        assigned.delivery.loan = None  # there is no Ray to settle it with
        strict = Settings(max_message_bytes=10)
        scene.calls_of_serve = AssignedCalls(replicas, scene._mailbox, strict, ended=scene.ended)
        with pytest.raises(MessageTooLargeError):
            scene.assign("b")

    asyncio.run(main())


# ------------------------------------------------------------ at the caller: results


def answered(peer: Peer) -> tuple[Delivery, Borrowed]:
    """A call whose replica has stored the result."""
    delivery = peer.deliver(10)
    assert delivery.send(peer.connection)
    payload = Segments((), stored=Stored(SIZE))
    payload.refs = borrowed = Borrowed()
    delivery.on_reply(CallEventKind.RESULT, payload, None)
    assert (delivery.done, delivery.connection) == (False, None)
    assert delivery.describe() == "fetching its result"
    return delivery, borrowed


def arrive(borrowed: Borrowed, *refs: str) -> None:
    borrowed.extend(refs)
    borrowed.fetched.set_result(None)


def test_a_result_is_there_once_it_was_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        fake = Store(monkeypatch)
        delivery, borrowed = answered(Peer())
        fake.go.set()
        arrive(borrowed, "object", "named")
        assert await delivery.call == b"of object"
        outcome = delivery.call.outcome
        assert type(outcome) is Result
        assert not is_stored(outcome.payload)
        assert refs_of(outcome.payload) == ["named"]  # held as long as the bytes
        assert borrowed == []  # by which its replica learns that it may go

    asyncio.run(main())


@pytest.mark.parametrize("how", ["before", "meanwhile"])
def test_a_result_that_went_with_its_replica_is_lost(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def main() -> None:
        peer, fake = Peer(), Store(monkeypatch)
        delivery, borrowed = answered(peer)
        fake.fails = StoreError("Ray says OWNER_DIED of it", owner_died=True)
        fake.go.set()
        arrive(borrowed, *(["object"] if how == "meanwhile" else []))
        await eventually_async(lambda: delivery.done)
        assert peer.of_ready.lost == [(delivery.call, True)]  # asked whether it is repeated
        assert delivery.stage is None

    asyncio.run(main())


def test_a_result_that_cannot_be_had_though_its_replica_lives_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        fake = Store(monkeypatch)
        delivery, borrowed = answered(Peer())
        fake.fails = StoreError("Ray says OBJECT_LOST of it")
        fake.go.set()
        arrive(borrowed, "object")
        with pytest.raises(ServeGrpcError, match=r"3145728 bytes.*OBJECT_LOST") as raised:
            await delivery.call
        assert raised.value.may_have_executed
        assert type(delivery.call.outcome) is GivenUp

    asyncio.run(main())


def test_a_deadline_and_a_cancel_end_a_call_whose_result_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        fake, peer = Store(monkeypatch), Peer()
        (late, borrowed), (cancelled, others) = answered(peer), answered(peer)
        arrive(others, "object")
        late.expire_after(0.0)
        cancelled.cancel()
        await eventually_async(lambda: late.done)
        assert late.call.outcome is not None
        assert (late.call.outcome.kind, late.call.outcome.may_have_executed) == (
            "deadline_exceeded",
            True,
        )
        assert type(cancelled.call.outcome) is Cancelled
        arrive(borrowed, "object")
        fake.go.set()
        await asyncio.sleep(0)
        assert late.call.outcome.kind == "deadline_exceeded"

    asyncio.run(main())


def test_a_call_ends_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        fake, peer = Store(monkeypatch), Peer()
        fake.go.set()
        fake.fails = MemoryError("of ours")  # type: ignore[assignment]
        fetched, borrowed = answered(peer)
        arrive(borrowed, "object")
        put = peer.deliver()
        put.send(peer.connection)
        for delivery, may_have_executed in ((fetched, True), (put, False)):
            with pytest.raises(ServeGrpcError, match="MemoryError") as raised:
                await delivery.call
            assert raised.value.may_have_executed is may_have_executed

    asyncio.run(main())


def test_a_loop_that_ends_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Delivery:
        Store(monkeypatch)
        delivery, _ = answered(Peer())
        await asyncio.sleep(0)
        return delivery

    assert type(asyncio.run(main()).call.outcome) is Cancelled
