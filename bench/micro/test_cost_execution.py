"""Execution: the user's code by Serve's rules, on a real event loop.

A batch of 32 requests to `async def` methods that return at once. The time of `run_until_complete`
itself, about half a microsecond a call, is in it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench.micro.pair import BATCH, REQUEST_ID
from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc.replica.executor import Executor
from serve_grpc.replica.invocation import Invocation, Outcome
from serve_grpc.serialization import get_serializer


async def echo(text: str) -> str:
    return text


class Outcomes:
    """In the place of the dispatcher: counts what comes out."""

    def __init__(self) -> None:
        self.missing = 0
        self.all_in: asyncio.Future[None] | None = None

    def on_outcome(self, _: Invocation, outcome: Outcome) -> None:
        assert outcome.error is None
        self.missing -= 1
        if self.missing == 0 and self.all_in is not None:
            self.all_in.set_result(None)

    def on_spare_slots(self, count: int) -> None:
        raise AssertionError("nothing stands by here")


def new_invocation(call_id: int, serializer: str, payload: bytes) -> Invocation:
    replies: Any = None
    return Invocation(
        replies,
        call_id,
        "__call__",
        serializer,
        serializer,
        False,
        payload,
        REQUEST_ID,
        f"{REQUEST_ID}/{call_id}",
        "/",
    )


@pytest.mark.parametrize("serializer", ["cloudpickle", "noop"])
def test_async_methods_run(cost: Any, serializer: str) -> None:
    argument = b"x" * 100 if serializer == "noop" else "x" * 100
    payload = get_serializer(serializer).dump_request((argument,), {})
    outcomes: Any = Outcomes()
    loop = asyncio.new_event_loop()

    async def start() -> tuple[ReplicaAdapter, Executor]:
        adapter = new_replica_adapter(echo, max_ongoing_requests=BATCH)
        return adapter, Executor(adapter, outcomes, 10**6)

    adapter, executor = loop.run_until_complete(start())

    async def run(invocations: list[Invocation]) -> None:
        outcomes.missing = len(invocations)
        outcomes.all_in = loop.create_future()
        executor.submit(invocations)
        await outcomes.all_in

    def invocations() -> tuple[list[Invocation]]:
        return ([new_invocation(n, serializer, payload) for n in range(BATCH)],)

    cost.of_prepared(
        lambda batch: loop.run_until_complete(run(batch)),
        invocations,
        part="execution",
        side="replica",
        calls=BATCH,
    )
    adapter._access_log.close()
    loop.run_until_complete(cancel_tasks())
    loop.close()
    assert outcomes.missing == 0
