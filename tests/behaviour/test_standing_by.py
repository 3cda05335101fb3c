"""Calls that find the replica full, over a real socket, with Serve's own slots."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._serve.replicas import ReplicaAdapter, UserMethod
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.config import Settings
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.replica.standby import STAND_BY_S
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import Chooser, connect, new_call, send, serve
from tests.fakes.deliveries import delivery_of
from tests.ray.waiting import eventually_async

SLOTS = 3
WARM = 600
LAST = contextvars.ContextVar("last", default=b"nobody")
AT_ONCE_S = 0.5
"""Far more than the few milliseconds; a loaded machine must not fail the test."""


class Users:
    """The user's code: a handler that is done at once, and one that stays until `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = self.most = 0
        self.started: list[bytes] = []

    async def echo(self, value: bytes) -> bytes:
        with self._count(value):
            return value

    async def hold(self, value: bytes) -> bytes:
        with self._count(value):
            await self.go.wait()
            return value

    async def whose(self, value: bytes) -> bytes:
        with self._count(value):
            before = LAST.get()
            LAST.set(value)
            return before

    @contextlib.contextmanager
    def _count(self, value: bytes) -> Any:
        self.started.append(value)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
        finally:
            self.running -= 1


class Replica:
    """One with three slots, and a caller that sends whatever it is told to."""

    def __init__(self, users: Users, dispatcher: ReplicaDispatcher, port: int) -> None:
        self.users = users
        self.dispatcher = dispatcher
        self.port = port
        self.chooser = Chooser()
        self.connection: Connection

    async def open(self) -> None:
        self.connection = connect(self.port, self.chooser, max_ongoing_requests=SLOTS)
        self.connection.connect()
        await eventually_async(lambda: self.connection.peer.state is PeerState.READY)

    def send(self, *names: str, method: str = "echo") -> list[Call]:
        """So many calls, in one message."""
        calls = [new_call(self.chooser, name.encode(), method) for name in names]
        for call in calls:
            send(self.connection, call)
        return calls

    async def warm(self) -> None:
        """Let the replica see that its requests are short."""
        for number in range(WARM):
            (call,) = self.send(f"warm{number}")
            await call.wait_done()
        self.users.started.clear()
        assert self.connection.peer.standby >= 5


def new_adapter(users: Users) -> ReplicaAdapter:
    adapter = new_replica_adapter(users.echo, max_ongoing_requests=SLOTS)
    for method in (users.hold, users.whose):
        name = method.__name__
        adapter._methods[name] = UserMethod(name, method, True, False)
    return adapter


@contextlib.asynccontextmanager
async def replica() -> AsyncIterator[Replica]:
    users = Users()
    adapter = new_adapter(users)
    dispatcher = ReplicaDispatcher(adapter, Settings())
    server, port, _ = await serve(dispatcher=dispatcher)
    one = Replica(users, dispatcher, port)
    await one.open()
    try:
        yield one
    finally:
        users.go.set()
        await one.connection.aclose()
        await server.stop(0)
        await cancel_tasks()
        adapter._access_log.close()


async def outcome(call: Call) -> bytes | str:
    """What a call came to: its result, or the text of its error."""
    await asyncio.wait_for(call.wait_done(), 10)
    try:
        result: bytes = call.result()
        return result
    except RuntimeError as error:
        return str(error)


NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
ALL = [name.encode() for name in NAMES]


def run(test: Any) -> None:
    async def main() -> None:
        async with replica() as one:
            await test(one)

    asyncio.run(main())


def test_short_requests_beyond_the_slots_run_in_turn_and_none_is_turned_away() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        assert [await outcome(call) for call in one.send(*NAMES)] == ALL
        assert one.users.started == ALL
        assert one.users.most <= SLOTS
        assert one.dispatcher.rejections == 0
        assert one.dispatcher.ongoing() == 0

    run(test)


def test_what_a_handler_leaves_in_its_context_is_not_seen_by_the_next_one() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        seen = [await outcome(call) for call in one.send(*NAMES, method="whose")]
        assert seen == [b"nobody"] * len(NAMES)

    run(test)


def test_a_replica_that_is_not_known_to_be_quick_turns_them_away_at_once() -> None:
    async def test(one: Replica) -> None:
        assert one.connection.peer.standby == 0
        calls = one.send(*NAMES, method="hold")
        assert [await outcome(call) for call in calls[SLOTS:]] == ["rejected"] * 5
        assert one.users.running == SLOTS

    run(test)


def test_those_that_stand_by_are_turned_away_when_no_slot_comes() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        begin = time.monotonic()
        calls = one.send(*NAMES, method="hold")
        assert [await outcome(call) for call in calls[SLOTS:]] == ["rejected"] * 5
        assert STAND_BY_S <= time.monotonic() - begin <= AT_ONCE_S
        assert one.users.running == SLOTS
        assert one.connection.peer.standby == 0
        # From now on they are turned away at once, and told when there is a slot.
        assert await outcome(one.send("late")[0]) == "rejected"
        assert one.connection.peer.blocked
        one.users.go.set()
        await eventually_async(lambda: not one.connection.peer.blocked)
        assert await outcome(one.send("last")[0]) == b"last"
        assert one.users.most == SLOTS

    run(test)


def test_a_call_that_is_given_up_while_it_stands_by_never_runs() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        held = one.send("a", "b", "c", method="hold")
        given_up, kept = one.send("given up", "kept")
        delivery_of(given_up).cancel()
        await eventually_async(lambda: len(one.users.started) == SLOTS)
        one.users.go.set()
        for call in held:
            await outcome(call)
        # It runs, or was turned away if the machine took its time.
        assert await outcome(kept) in (b"kept", "rejected")
        assert b"given up" not in one.users.started

    run(test)


def test_a_call_that_was_given_up_while_it_stood_by_takes_nobodys_turn() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        other = Replica(one.users, one.dispatcher, one.port)
        await other.open()
        held = one.send("a", "b", "c", method="hold")
        (given_up,) = one.send("given up")
        delivery_of(given_up).cancel()
        await eventually_async(lambda: len(one.users.started) == SLOTS)
        await eventually_async(lambda: not one.dispatcher.admission.standby)
        (waiting,) = other.send("waiting")
        assert await outcome(waiting) == "rejected"
        assert (one.dispatcher.rejections, other.connection.peer.blocked) == (1, True)
        delivery_of(held[0]).cancel()
        await eventually_async(lambda: not other.connection.peer.blocked)
        await other.connection.aclose()

    run(test)


@pytest.mark.parametrize("is_warm", [False, True], ids=["new", "quick"])
def test_calls_of_a_caller_that_leaves_never_run(is_warm: bool) -> None:
    async def test(one: Replica) -> None:
        if is_warm:
            await one.warm()
        one.send(*NAMES, method="hold")
        await eventually_async(lambda: len(one.users.started) == SLOTS)
        await one.connection.aclose()
        await eventually_async(lambda: one.users.running == 0)
        await eventually_async(lambda: one.dispatcher.ongoing() == 0)
        assert one.users.started == ALL[:SLOTS]

    run(test)


def test_a_session_that_was_turned_away_comes_before_those_that_would_stand_by() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        one.send("a", "b", "c", method="hold")
        waiting = one.send("turned away")
        assert await outcome(waiting[0]) == "rejected"
        for _ in range(WARM):  # the replica would let calls stand by again
            one.dispatcher.admission.standby.on_duration(0.05)
        assert await outcome(one.send("another")[0]) == "rejected"
        one.users.go.set()
        await eventually_async(lambda: not one.connection.peer.blocked)

    run(test)


def test_two_sessions_share_what_may_stand_by() -> None:
    async def test(one: Replica) -> None:
        await one.warm()
        alone = one.connection.peer.standby
        other = Replica(one.users, one.dispatcher, one.port)
        await other.open()
        for each in (other, one):
            await outcome(each.send("x")[0])
        assert 0 < one.connection.peer.standby <= alone // 2 + 1
        await other.connection.aclose()

    run(test)
