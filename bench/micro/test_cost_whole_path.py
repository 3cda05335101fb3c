"""The whole path of a call in one process, from its arguments to its result, all but gRPC.

Router, session, dispatcher, executor, accounting and access log of both sides, and the tasks of the
calls themselves; see bench/stand_ins/loopback.py for what stands in. Counters and log lines are
written every 50 ms, so it is the mean that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from bench.micro.pair import BATCH
from bench.stand_ins.loopback import loopback
from bench.stand_ins.serve import serve_log


@pytest.mark.parametrize("calls", [1, BATCH], ids="{} in flight".format)
@pytest.mark.parametrize("serializer", ["cloudpickle", "orjson"])
def test_echo(cost: Any, tmp_path: Path, calls: int, serializer: str) -> None:
    loop = asyncio.new_event_loop()
    text = "x" * 100
    with serve_log(tmp_path):
        stack = contextlib.AsyncExitStack()
        caller = loop.run_until_complete(stack.enter_async_context(loopback(serializer)))

        async def calls_at_once() -> list[Any]:
            return await asyncio.gather(*(caller.call(text) for _ in range(calls)))

        answers = cost(
            lambda: loop.run_until_complete(calls_at_once()),
            part="whole path",
            side="both",
            calls=calls,
            statistic="mean",
        )
        loop.run_until_complete(stack.aclose())
    loop.close()
    assert answers == [text] * calls
