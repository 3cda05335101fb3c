"""Streams as arguments when a process goes: the caller is killed, the replica is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

import serve_grpc
from tests.ray.apps.gated import Board
from tests.ray.apps.uploads import Feeder, Uploads
from tests.ray.carriers import CARRIERS, options_over
from tests.ray.waiting import eventually, eventually_async

PATIENCE_S = 60
OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 60,
}


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_caller_that_is_killed_is_no_end_and_frees_the_slot(deploy, board, carrier):
    sink = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=1)(Uploads)
    feeder = serve_grpc.deployment(**options_over(carrier, OPTIONS))(Feeder)
    handle = deploy(feeder.bind(sink.bind()), f"fed-{carrier}")
    pid = handle.pid.remote().result(timeout_s=PATIENCE_S)
    feeding = handle.feed.remote(board.path)
    eventually(lambda: board.count("item") >= 3)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(serve_grpc.errors.ReplicaDiedError):
        feeding.result(timeout_s=PATIENCE_S)
    eventually(lambda: board.count("cancelled"), timeout_s=PATIENCE_S)
    assert not board.count("end") + board.count("failed")
    uploads = serve_grpc.get_deployment_handle("Uploads", f"fed-{carrier}")
    total = uploads.options(_by_reference=False).total
    assert total.remote(n for n in range(3)).result(timeout_s=PATIENCE_S) == 3


def test_a_stream_goes_on_while_its_replica_is_replaced(deploy, board):
    def app(version: str) -> Any:
        # Another environment is another version of the code.
        actor = {"num_cpus": 0.01, "runtime_env": {"env_vars": {"VERSION": version}}}
        options = {**OPTIONS, "ray_actor_options": actor}
        return serve_grpc.deployment(**options)(Uploads).bind()

    handle = deploy(app("1"), "replaced")
    may_end = asyncio.Event()

    async def items() -> AsyncIterator[str]:
        while not may_end.is_set():
            yield "item"
            await asyncio.sleep(0.01)

    async def main() -> None:
        before = await handle.pid.remote()
        upload = handle.note_items.remote(items(), board.path)
        await eventually_async(lambda: board.count("item") >= 3)
        replacing = asyncio.get_running_loop().run_in_executor(
            None, lambda: serve_grpc.run(app("2"), name="replaced", route_prefix=None)
        )

        async def is_replaced() -> bool:
            return await handle.pid.remote() != before

        async def until_replaced() -> None:
            while not await is_replaced():
                pass

        await asyncio.wait_for(until_replaced(), PATIENCE_S)
        seen = board.count("item")
        await eventually_async(lambda: board.count("item") > seen)  # it goes on
        may_end.set()
        await asyncio.wait_for(upload, PATIENCE_S)
        await replacing

    asyncio.run(main())
    assert (board.count("end"), board.count("cancelled") + board.count("failed")) == (1, 0)
    assert {int(pid) for _, _, pid, _ in board.lines("item")} == {
        int(pid) for _, _, pid, _ in board.lines("end")
    }
