"""The memory of a process: what is idle in it goes back, with links and without."""

from __future__ import annotations

import _thread
import asyncio
import gc
import os
import signal
import threading
import weakref

import pytest

from serve_grpc.shared_memory import pool as pool_module
from serve_grpc.shared_memory import process as process_module
from serve_grpc.shared_memory.process import ProcessMemory
from tests.ray.waiting import eventually
from tests.unit.shared_memory_ends import MIB, SIZE, needs_memfd

pytestmark = needs_memfd

IDLE_S = 0.3


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ProcessMemory:
    """What is idle in it goes back soon."""
    for module in (pool_module, process_module):
        monkeypatch.setattr(module, "IDLE_S", IDLE_S)
    return ProcessMemory(64 * MIB)


class Link:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    def on_segment_closed(self, number: int) -> None:
        self.closed.append(number)


def piece(memory: ProcessMemory, size: int = SIZE) -> memoryview:
    assert memory.pieces is not None
    kept = memory.pieces.keep(b"x" * size)
    assert kept is not None
    return kept


def test_what_was_never_lent_goes_back(memory: ProcessMemory) -> None:
    """As where there should have been a lane, and the payload went over gRPC."""
    kept = piece(memory)
    assert memory.statistics.segments == 1
    del kept
    eventually(lambda: memory.statistics.segments == 0, timeout_s=5)


def test_what_is_freed_after_the_last_link_has_ended_goes_back(memory: ProcessMemory) -> None:
    link = Link()
    memory.add(link)
    kept = piece(memory)
    memory.remove(link)
    eventually(lambda: memory._is_watched)
    assert memory.statistics.segments == 1  # a response holds it, say
    del kept
    eventually(lambda: memory.statistics.segments == 0, timeout_s=5)
    # And what comes later as well: the thread that looked has ended.
    eventually(lambda: not memory._is_watched, timeout_s=5)
    piece(memory, 2 * SIZE)
    eventually(lambda: memory.statistics.segments == 0, timeout_s=5)


def test_what_is_idle_goes_back_beside_a_loop_that_stands_still(memory: ProcessMemory) -> None:
    link = Link()
    memory.add(link)
    piece(memory)

    async def stand_still() -> None:
        eventually(lambda: link.closed == [1], timeout_s=5)

    asyncio.run(stand_still())


def test_what_is_in_use_stays(memory: ProcessMemory) -> None:
    kept, other = piece(memory), piece(memory, MIB)
    del other
    eventually(lambda: memory.statistics.segments == 1, timeout_s=5)
    assert bytes(kept) == b"x" * SIZE
    assert memory._is_watched


def test_nobody_keeps_a_memory_alive_to_look_at_it(memory: ProcessMemory) -> None:
    process_module.IDLE_S = 60  # of the one that looks
    local = ProcessMemory(64 * MIB)
    piece(local)
    assert local._is_watched
    found = weakref.ref(local)
    del local
    gc.collect()
    assert found() is None


def test_without_a_thread_the_next_segment_tries_again(
    memory: ProcessMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", no_more)
        piece(memory)
    assert not memory._is_watched
    piece(memory, MIB * 2)
    eventually(lambda: memory.statistics.segments == 0, timeout_s=5)


def test_a_forked_child_does_not_wait_for_the_lock_of_a_thread_it_does_not_have(
    memory: ProcessMemory,
) -> None:
    piece(memory)
    inside, go = threading.Event(), threading.Event()

    def stay_inside() -> None:
        with memory._pool._section:
            inside.set()
            go.wait(20)

    thread = threading.Thread(target=stay_inside)
    thread.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if memory._pool.trim() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
    thread.join()
