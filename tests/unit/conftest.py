"""Fixtures of the unit tests."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.stand_ins.serve import cancel_tasks
from serve_grpc.caller import dialling, trouble
from serve_grpc.carriers.local import framing, memory
from serve_grpc.shared_memory.process import ProcessMemory
from tests.unit.lanes import HERE
from tests.unit.local_memories import POOL_BYTES
from tests.unit.sessions_loop import TransportLoop


@pytest.fixture
def transport() -> Iterator[TransportLoop]:
    """A running transport loop."""
    started = TransportLoop()
    yield started
    started.stop()


@pytest.fixture
def path() -> Iterator[str]:
    """Of a replica's socket. Short, for pytest's own are too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        yield os.path.join(directory, f"replica-0123456789ab.v{framing.VERSION}")


@pytest.fixture
def on_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on the node of the replicas in `lanes`; callers reconnect soon."""
    monkeypatch.setattr(dialling, "node_id", lambda: HERE)
    monkeypatch.setattr(trouble, "RECONNECT_S", (0.01, 0.02))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> ProcessMemory:
    """The memory of this process, for the links of one test."""
    made = ProcessMemory(POOL_BYTES)
    monkeypatch.setattr(memory, "process_memory", lambda: made)
    return made


@pytest.fixture(params=["one-loop", "two-loops"])
def user_loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop | None]:
    """None, or a loop in a thread of its own."""
    if request.param == "one-loop":
        yield None
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(cancel_tasks(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def run(user_loop: asyncio.AbstractEventLoop | None) -> Callable[..., None]:
    """Runs a test with a replica of some code, and looks that it gave back all slots."""
    # Not above: it imports a test file, which pytest has to load itself.
    from tests.unit.input_calls import Replica

    def run_it(code: Callable[..., Any], test: Callable[..., Any], slots: int = 1) -> None:
        async def main() -> None:
            replica = Replica(code, user_loop, slots)
            try:
                await asyncio.wait_for(test(replica, replica.caller), 30)
                await replica.idle()
            finally:
                await cancel_tasks()
                replica.adapter._access_log.close()

        asyncio.run(main())

    return run_it
