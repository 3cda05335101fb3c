"""Fixtures of the unit tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from serve_grpc.caller import connection, dialling
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
    monkeypatch.setattr(connection, "RECONNECT_S", (0.01, 0.02))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> ProcessMemory:
    """The memory of this process, for the links of one test."""
    made = ProcessMemory(POOL_BYTES)
    monkeypatch.setattr(memory, "process_memory", lambda: made)
    return made
