"""The executor: every invocation ends in one outcome, whenever it is cancelled."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error, RequestContext
from serve_grpc._serve.replicas import UserMethod
from serve_grpc._serve.tracing import Scope
from serve_grpc.replica.executor import Executor
from serve_grpc.replica.invocation import CancelReason, Invocation, Outcome
from serve_grpc.replica.standby import StandbyQueue
from serve_grpc.serialization import get_serializer

DUMPS = get_serializer("pickle")


class OneMethod:
    """What the executor needs of a replica, for one function of any kind; `def` in a thread."""

    app_name, deployment_name, replica_id = "app", "deployment", "replica"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.user_loop = asyncio.get_running_loop()
        is_coroutine = inspect.iscoroutinefunction(function)
        in_thread = not is_coroutine and not inspect.isasyncgenfunction(function)
        self._method = UserMethod("__call__", function, is_coroutine, in_thread)

    def method(self, _: str) -> UserMethod:
        return self._method


class Outcomes:
    """Keeps what comes out."""

    def __init__(self) -> None:
        self.by_id: dict[int, list[Outcome]] = {}
        self.items: list[bytes] = []
        self.spare_slots = 0

    def on_item(self, _: Invocation, payload: bytes) -> None:
        self.items.append(payload)

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        self.by_id.setdefault(invocation.call_id, []).append(outcome)

    def on_spare_slots(self, count: int) -> None:
        self.spare_slots += count


def invocation(call_id: int, *args: Any, **fields: Any) -> Invocation:
    """A unary call of the one method; `fields` are those of `Invocation`."""
    payload = fields.pop("payload", None) or DUMPS.dump_request(args, fields.pop("kwargs", {}))
    replies: Any = SimpleNamespace(stores_above=None)  # to a session without the object store
    return Invocation(
        replies, call_id, "__call__", "pickle", "pickle", fields.pop("is_stream", False), payload,
        f"request {call_id}", f"internal {call_id}", **fields,
    )  # fmt: skip


async def settle(outcomes: Outcomes, count: int) -> None:
    """Give the loop turns until `count` invocations are over."""
    for _ in range(1000):
        if len(outcomes.by_id) == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"only {len(outcomes.by_id)} of {count} ended")


@pytest.mark.parametrize(
    ("slots", "passed_on"),
    [pytest.param(2, [True, True, False], id="two"), pytest.param(1, [False], id="one-taken-away")],
)
def test_a_slot_is_passed_on_unless_it_was_taken_away(slots: int, passed_on: list[bool]) -> None:
    async def answer() -> str:
        return "answer"

    async def run() -> Outcomes:
        outcomes, standby = Outcomes(), StandbyQueue[Invocation]()
        replica: Any = OneMethod(answer)
        replica.ongoing, replica.max_ongoing_requests = lambda: 2, slots
        for call_id in (2, 3):
            standby.add(invocation(call_id), 0.0)
        Executor(replica, outcomes, 10**6, standby=standby).submit([invocation(1)], 2)
        await settle(outcomes, len(passed_on))
        return outcomes

    by_id = asyncio.run(run()).by_id
    assert [outcome.passes_slot_on for (outcome,) in by_id.values()] == passed_on


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_cancel_at_any_time_gives_one_outcome(turns: int) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(forever)
        executor = Executor(replica, outcomes, 10**6)
        one = invocation(1)
        executor.submit([one])
        for _ in range(turns):
            await asyncio.sleep(0)
        executor.cancel(one, CancelReason.CALLER)
        executor.cancel(one, CancelReason.CALLER)
        await settle(outcomes, 1)
        executor.cancel(one, CancelReason.CALLER)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.status == "CANCELLED"
    assert outcome.error is not None
    assert outcome.error.code == Error.CANCELLED


def test_requests_start_in_order_a_few_in_each_turn() -> None:
    started: list[int] = []

    async def note(number: int) -> int:
        started.append(number)
        return number

    async def run() -> tuple[Outcomes, list[int]]:
        outcomes = Outcomes()
        replica: Any = OneMethod(note)
        executor = Executor(replica, outcomes, 10**6)
        executor.submit([invocation(n, n) for n in range(10)], starts_per_turn=3)
        seen = []
        while len(outcomes.by_id) < 10:
            await asyncio.sleep(0)
            seen.append(len(started))
        return outcomes, seen

    outcomes, seen = asyncio.run(run())
    assert started == list(range(10))
    assert seen[:3] == [3, 6, 9]
    assert [DUMPS.load_response(o.payload) for (o,) in outcomes.by_id.values()] == started


def test_a_deadline_ends_the_code_and_says_that_it_ran() -> None:
    cancelled = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(forever)
        executor = Executor(replica, outcomes, 10**6)
        one = invocation(1, deadline_s=time.monotonic() + 0.02)
        executor.submit([one])
        assert one.task is not None
        await one.task
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.may_have_executed) == (Error.DEADLINE_EXCEEDED, True)
    assert cancelled == [True]


def test_a_context_that_cannot_be_read_fails_its_call() -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(never)
        one = invocation(1)
        one.scope = Scope(RequestContext(grpc_context=b"no pickle"))
        Executor(replica, outcomes, 10**6).submit([one])
        await settle(outcomes, 1)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.may_have_executed) == (Error.SERIALIZATION, False)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_would_end_a_process_ends_only_the_call(kind: type[BaseException]) -> None:
    async def leave() -> None:
        raise kind

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(leave)
        Executor(replica, outcomes, 10**6).submit([invocation(1)])
        await settle(outcomes, 1)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is not None
    assert outcome.error.may_have_executed
