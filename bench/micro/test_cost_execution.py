"""Execution: the user's code by Serve's rules, on a real event loop.

A batch of 32 requests to `async def` methods that return at once. The time of `run_until_complete`
itself, about half a microsecond a call, is in it.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bench.micro.pair import BATCH, REQUEST_ID
from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc.payload import Payload
from serve_grpc.replica.executor import Executor
from serve_grpc.replica.invocation import Invocation, Outcome
from serve_grpc.serialization import get_serializer


async def echo(text: str) -> str:
    return text


class CountedOutputs:
    """In the place of the dispatcher: counts what comes out. Is `executor.Outputs`."""

    def __init__(self) -> None:
        self.missing = 0
        self.all_in: asyncio.Future[None] | None = None

    def on_item(self, invocation: Invocation, payload: Payload) -> None:
        raise AssertionError("nothing streams here")

    def on_outcome(self, invocation: Invocation, outcome: Outcome) -> None:
        self.missing -= 1
        if self.all_in is None or self.all_in.done():
            return
        if outcome.error is not None:  # not raised here: what is raised is logged, and no end
            self.all_in.set_exception(RuntimeError(str(outcome.error)))
        elif self.missing == 0:
            self.all_in.set_result(None)

    def on_spare_slots(self, count: int) -> None:
        raise AssertionError("nothing stands by here")


def new_invocation(call_id: int, serializer: str, payload: Payload) -> Invocation:
    replies: Any = SimpleNamespace(stores_above=None)  # to a session without the object store
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
    outputs = CountedOutputs()
    loop = asyncio.new_event_loop()

    async def start() -> tuple[ReplicaAdapter, Executor]:
        adapter = new_replica_adapter(echo, max_ongoing_requests=BATCH)
        return adapter, Executor(adapter, outputs, 10**6)

    adapter, executor = loop.run_until_complete(start())

    async def run(invocations: list[Invocation]) -> None:
        outputs.missing = len(invocations)
        outputs.all_in = loop.create_future()
        executor.submit(invocations)
        await outputs.all_in

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
    assert outputs.missing == 0
