"""Code in a thread: its slot is held until the thread is out, and its caller is told at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from anyio import to_thread

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.replica.executor import Executor
from serve_grpc.replica.invocation import CancelReason, Invocation
from serve_grpc.replica.standby import StandbyQueue
from tests.ray.waiting import eventually_async
from tests.unit.test_executor import DUMPS, OneMethod, Outcomes, invocation, settle

CREDIT = (2, 10**6)


class Users:
    """Code that stays in its thread until `go`."""

    def __init__(self) -> None:
        self.go, self.is_inside = threading.Event(), threading.Event()
        self.is_out = False
        self.made = 0

    def unary(self) -> str:
        with self:
            return "result"

    def leaves(self) -> None:
        with self:
            raise SystemExit

    def long_step(self) -> Iterator[int]:
        yield 1
        with self:
            yield 2

    def without_credit(self) -> Iterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
                self.is_inside.set()
        finally:
            self.is_out = True

    def __enter__(self) -> None:
        self.is_inside.set()
        assert self.go.wait(30)

    def __exit__(self, *_: object) -> None:
        self.is_out = True


class Harness:
    """An executor with one method."""

    def __init__(self, function: Callable[..., Any], standby: StandbyQueue[Invocation]) -> None:
        replica: Any = OneMethod(function)
        replica.ongoing, replica.max_ongoing_requests = lambda: 1, 1
        self.outcomes = Outcomes()
        self.executor = Executor(replica, self.outcomes, 10**6, standby=standby)


def run(
    users: Users,
    function: Callable[..., Any],
    test: Callable[[Harness], Awaitable[None]],
    standby: StandbyQueue[Invocation] | None = None,
) -> None:
    async def main() -> None:
        try:
            await test(Harness(function, StandbyQueue() if standby is None else standby))
        finally:
            users.go.set()

    asyncio.run(main())


@pytest.mark.parametrize("reason", CancelReason)
@pytest.mark.parametrize("name", ["unary", "leaves", "long_step"])
def test_the_slot_is_held_until_the_thread_is_out(name: str, reason: CancelReason) -> None:
    users = Users()

    async def test(harness: Harness) -> None:
        one = invocation(1, is_stream=name == "long_step", credit=CREDIT)
        harness.executor.submit([one])
        await eventually_async(users.is_inside.is_set)
        harness.executor.cancel(one, reason)
        (outcome,) = harness.outcomes.by_id[1]
        assert outcome.error is not None
        code = Error.CANCELLED if reason is CancelReason.CALLER else Error.DEADLINE_EXCEEDED
        assert (outcome.error.code, outcome.holds_slot) == (code, True)
        assert not users.is_out
        limiter = to_thread.current_default_thread_limiter()
        assert (harness.outcomes.spare_slots, limiter.borrowed_tokens) == (0, 1)
        users.go.set()
        await eventually_async(lambda: harness.outcomes.spare_slots == 1)
        assert (users.is_out, limiter.borrowed_tokens) == (True, 0)
        assert one.task is not None
        await one.task
        assert harness.outcomes.by_id[1] == [outcome]

    run(users, getattr(users, name), test)


def test_a_generator_that_waits_for_credit_ends_at_once() -> None:
    users = Users()

    async def test(harness: Harness) -> None:
        one = invocation(1, is_stream=True, credit=CREDIT)
        harness.executor.submit([one])
        await eventually_async(lambda: users.made == CREDIT[0] + 1)
        harness.executor.cancel(one, CancelReason.CALLER)
        await eventually_async(lambda: harness.outcomes.spare_slots == 1)
        assert users.is_out
        assert len(harness.outcomes.items) == CREDIT[0]

    run(users, users.without_credit, test)


def test_a_deadline_that_passes_is_told_while_the_thread_runs_on() -> None:
    users = Users()

    async def test(harness: Harness) -> None:
        harness.executor.submit([invocation(1, deadline_s=time.monotonic() + 0.05)])
        await settle_in_time(harness)
        (outcome,) = harness.outcomes.by_id[1]
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.may_have_executed, outcome.status) == (
            Error.DEADLINE_EXCEEDED,
            True,
            "ERROR",
        )
        assert (users.is_inside.is_set(), users.is_out) == (True, False)

    run(users, users.unary, test)


async def settle_in_time(harness: Harness) -> None:
    await eventually_async(lambda: bool(harness.outcomes.by_id))


def test_a_slot_that_was_held_goes_to_one_that_stands_by() -> None:
    users = Users()
    standby: StandbyQueue[Invocation] = StandbyQueue()

    async def test(harness: Harness) -> None:
        one, two = invocation(1), invocation(2)
        harness.executor.submit([one])
        await eventually_async(users.is_inside.is_set)
        standby.add(two, 0.0)
        harness.executor.submit([], 1)
        harness.executor.cancel(one, CancelReason.CALLER)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(standby) == 1
        users.go.set()
        await eventually_async(lambda: 2 in harness.outcomes.by_id)
        (outcome,) = harness.outcomes.by_id[2]
        assert DUMPS.load_response(outcome.payload) == "result"
        assert (harness.outcomes.spare_slots, outcome.passes_slot_on) == (0, False)

    run(users, users.unary, test, standby)


def test_code_that_waits_for_a_thread_is_called_off_and_never_runs() -> None:
    users = Users()

    async def test(harness: Harness) -> None:
        to_thread.current_default_thread_limiter().total_tokens = 1
        first, second = invocation(1), invocation(2)
        harness.executor.submit([first, second])
        await eventually_async(users.is_inside.is_set)
        for _ in range(10):
            await asyncio.sleep(0)
        users.is_inside.clear()
        harness.executor.cancel(second, CancelReason.CALLER)
        await settle(harness.outcomes, 1)
        (outcome,) = harness.outcomes.by_id[2]
        assert (outcome.status, outcome.holds_slot) == ("CANCELLED", False)
        users.go.set()
        await eventually_async(lambda: 1 in harness.outcomes.by_id)
        assert not users.is_inside.is_set()

    run(users, users.unary, test)


def test_arguments_may_have_any_names() -> None:
    def echo(**named: int) -> dict[str, int]:
        return named

    named = dict.fromkeys(("self", "function", "invocation", "args", "kwargs"), 1)

    async def test(harness: Harness) -> None:
        harness.executor.submit([invocation(1, kwargs=named)])
        await eventually_async(lambda: 1 in harness.outcomes.by_id)
        (outcome,) = harness.outcomes.by_id[1]
        assert DUMPS.load_response(outcome.payload) == named

    run(Users(), echo, test)


def test_a_coroutine_that_works_on_after_its_cancel_holds_its_slot() -> None:
    users = Users()
    done = asyncio.Event()

    async def stubborn() -> str:
        users.is_inside.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await done.wait()
        return "after all"

    async def test(harness: Harness) -> None:
        one = invocation(1)
        harness.executor.submit([one])
        await eventually_async(users.is_inside.is_set)
        harness.executor.cancel(one, CancelReason.CALLER)
        for _ in range(10):
            await asyncio.sleep(0)
        assert (harness.outcomes.by_id, harness.outcomes.spare_slots) == ({}, 0)
        done.set()
        await settle(harness.outcomes, 1)

    run(users, stubborn, test)
