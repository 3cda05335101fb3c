"""A driver that calls by value on loops of asyncio and uvloop, and with eager tasks where it can.

It joins a Ray where the application "bench" runs.

With `uvloop` as an argument, uvloop is the driver's policy from its first line on.
"""

from __future__ import annotations

import asyncio
import os
import sys

if "uvloop" in sys.argv:
    import uvloop

    uvloop.install()

from typing import Any

import pytest
from ray.serve.exceptions import RequestCancelledError

import serve_grpc
from tests.behaviour.loops import LOOPS, run_on
from tests.ray.scripts import joined_ray


async def scenario(key: str) -> None:
    handle: Any = serve_grpc.get_app_handle("bench").options(_by_reference=False)
    assert await asyncio.gather(*(handle.remote(i) for i in range(50))) == list(range(50))
    stream = handle.options(method_name="items", stream=True).remote(5)
    assert [item async for item in stream] == [0, 1, 2, 3, 4]
    assert await handle.call_inner.remote("pid") > 0
    assert len(await handle.remote(b"x" * 4_000_000)) == 4_000_000
    with pytest.raises(serve_grpc.errors.DeadlineExceededError):
        await handle.options(timeout_s=0.2).hold.remote(f"late {key}")
    held = handle.hold.remote(f"held {key}")
    waiting = asyncio.ensure_future(_wait(held))
    await asyncio.sleep(0)
    held.cancel()
    with pytest.raises(RequestCancelledError):
        await waiting
    assert serve_grpc.handle_statistics(handle).calls["ok"] > 50


async def _wait(response: Any) -> Any:
    return await response


def main() -> None:
    with joined_ray():
        for name in LOOPS:
            run_on(name, scenario(f"{name} {os.getpid()}"))
        asyncio.run(scenario(f"policy {os.getpid()}"))
        print("policy:", type(asyncio.get_event_loop_policy()).__module__)


if __name__ == "__main__":
    main()
