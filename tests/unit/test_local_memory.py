"""Shared memory of a local link: what is lent, borrowed and given back, and what outlives it."""

from __future__ import annotations

import asyncio
import gc
import pickle
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_grpc import pickling
from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES
from serve_grpc.carriers.local.dial import dial
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.payload import Segments
from serve_grpc.shared_memory import process as process_module
from serve_grpc.shared_memory.process import ProcessMemory, process_memory
from serve_grpc.shared_memory.segments import is_available
from tests.behaviour.serving import Echo
from tests.descriptors import nothing_left_open, open_files
from tests.unit.local_memories import (
    POOL_BYTES,
    SIZE,
    between,
    lent,
    linked,
    piece,
    reading,
    until,
)
from tests.unit.pump_ends import Caller
from tests.unit.sessions import REPLICA_ID, SECRET, fields

pytestmark = pytest.mark.skipif(not is_available(), reason="this platform has no memfd")


def test_a_piece_is_read_where_it_is_and_given_back(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        part = piece(process)
        view = await lent(near, far, part)
        assert bytes(view) == b"x" * SIZE
        del part
        gc.collect()
        assert process.statistics.bytes_in_use > 0  # the peer reads it
        heard = reading(near)
        del view
        await until(lambda: process.statistics.bytes_in_use == 0)
        heard.cancel()

    between(check)


def test_what_the_receiver_writes_nobody_sees(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        part = piece(process)
        view = await lent(near, far, part)
        view[:] = b"y" * SIZE
        assert bytes(part) == b"x" * SIZE
        heard = reading(near)
        del part, view
        await until(lambda: process.statistics.bytes_in_use == 0)
        again = piece(process, b"z")
        assert process.statistics.made == 1  # in the same memory
        assert bytes(await lent(near, far, again)) == b"z" * SIZE
        heard.cancel()

    between(check)


def test_a_descriptor_crosses_once(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        views = [await lent(near, far, piece(process))]
        before = open_files()
        views += [await lent(near, far, piece(process)) for _ in range(5)]
        assert process.statistics.segments == 1
        assert [what for _, what in open_files() - before if "memfd" in what] == []
        assert all(bytes(view) == b"x" * SIZE for view in views)

    between(check)


def test_a_piece_is_lent_once_at_a_time(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        part = piece(process)
        view = await lent(near, far, part)
        assert near.memory is not None
        assert near.memory.lend(part) is None
        heard = reading(near)
        del view
        await until(lambda: near.memory is not None and near.memory.lend(part) is not None)
        heard.cancel()

    between(check)


def test_one_peer_is_not_lent_everything(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        assert near.memory is not None
        parts = [piece(process, size=8 * 1024 * 1024) for _ in range(5)]
        places = [near.memory.lend(part) for part in parts]
        assert [place is not None for place in places] == [True] * 4 + [False]

    between(check)


def test_what_a_lost_peer_may_read_is_never_written_to_again(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        part = piece(process)
        view = await lent(near, far, part)
        await near.close()
        del part
        gc.collect()
        assert process.statistics.bytes_in_use == 0
        piece(process, b"z")
        assert process.statistics.made == 2
        await far.close()
        assert bytes(view) == b"x" * SIZE  # a view outlives its link

    between(check)


def test_what_a_peer_may_read_is_never_written_to_again_if_nobody_ends_the_link(
    process: ProcessMemory,
) -> None:
    """A loop may be closed, and its links be garbage, without another word."""
    kept: list[memoryview] = []

    async def lend_and_forget() -> None:
        a, b = socket.socketpair(socket.AF_UNIX)
        near, far = LocalLink(a, is_accepted=False), LocalLink(b, is_accepted=False)
        kept.append(await lent(near, far, piece(process)))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(lend_and_forget())
    loop.close()
    del loop
    gc.collect()
    assert process.statistics.bytes_in_use == 0
    for _ in range(20):
        piece(process, b"z")
    assert process.statistics.made == 2
    assert bytes(kept[0]) == b"x" * SIZE


def test_what_one_lost_peer_may_read_another_still_reads(process: ProcessMemory) -> None:
    """A payload that is sent again, to another replica, is lent twice; then one of them is lost."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        async def lose_another(other: LocalLink, other_far: LocalLink) -> None:
            first = await lent(other, other_far, part)
            assert near.memory is not None
            place = near.memory.lend(part)
            assert place is not None
            await near.write(b"it is there")
            await other.close()
            process.trim()
            assert process.statistics.bytes_in_use > 0
            # A lost peer's pieces may be sent again, too.
            await linked(lend_again)
            heard = reading(near)
            assert await far.read() == b"it is there"
            assert far.memory is not None
            assert bytes(far.memory.borrow(place)) == bytes(first) == b"x" * SIZE
            heard.cancel()

        async def lend_again(third: LocalLink, third_far: LocalLink) -> None:
            assert bytes(await lent(third, third_far, part)) == b"x" * SIZE

        part = piece(process)
        await linked(lose_another)

    between(check)


def test_a_segment_that_is_closed_is_unmapped_by_the_peer(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        view = await lent(near, far, piece(process))
        heard = reading(near), reading(far)
        del view
        await until(lambda: process.statistics.bytes_in_use == 0)
        process.trim(1e12)
        assert process.statistics.segments == 0
        await until(lambda: "0 segments" in repr(far.memory))
        for task in heard:
            task.cancel()

    between(check)


def test_a_replica_that_waits_holds_no_payload(process: ProcessMemory, tmp_path: Path) -> None:
    """Only the user's code does, and whoever answers."""

    async def check() -> None:
        host = SessionHost(
            replica_id=REPLICA_ID,
            secrets=ClusterSecrets(lambda: (SECRET,), (SECRET,)),
            settings=Settings(),
            dispatcher=Echo(),
            largest_message=SESSION_MESSAGE_BYTES,
        )
        server = LocalServer(host, Settings())
        server.start(path := str(tmp_path / "socket"))
        caller = await Caller(lambda _, settings: dial(path, settings)).opened()
        caller.session.request("call", fields(Segments([piece(process)])))
        caller.pump.kick()
        await until(lambda: "call" in caller.answers)
        await until(lambda: process.statistics.bytes_in_use == 0)
        caller.pump.cancel()
        await caller.pump.wait_closed()
        await server.stop()

    asyncio.run(asyncio.wait_for(check(), 20))


@pytest.mark.parametrize("is_closed", [False, True])
def test_who_loads_a_payload_again_sees_what_was_sent(
    process: ProcessMemory, is_closed: bool
) -> None:
    """A result may be waited for twice, and be passed on after its array was changed."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        data = bytearray(b"x" * SIZE)
        sent = pickling.dump(pickle.PickleBuffer(data), pickle.Pickler, process.pieces)
        assert isinstance(sent, Segments)
        head, part = sent.parts[:-1], sent.parts[-1]
        assert isinstance(part, memoryview)
        came = Segments([*head, await lent(near, far, part)])
        first = pickling.load(came)
        first[:] = b"y" * SIZE
        if is_closed:
            await near.close()
            await far.close()
        second = pickling.load(came)
        assert bytes(second) == b"x" * SIZE
        second[:] = b"z" * SIZE
        assert bytes(pickle.loads(pickling.plain_pickle(came))) == b"x" * SIZE
        assert bytes(first) == b"y" * SIZE

    with nothing_left_open():
        between(check)
        process.trim(1e12)


def test_other_views_are_not_lent(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        assert near.memory is not None
        part = piece(process)
        assert near.memory.lend(memoryview(b"heap")) is None
        assert near.memory.lend(part[1:]) is None

    between(check)


def test_no_release_is_lost_when_two_views_die_at_a_time(process: ProcessMemory) -> None:
    """A finalizer runs in any thread, and inside of another one."""

    class Interrupted(deque[tuple[int, int]]):
        def append(self, place: tuple[int, int]) -> None:
            super().append(place)
            views.clear()

    views: list[memoryview] = []

    async def check(near: LocalLink, far: LocalLink) -> None:
        assert far.memory is not None
        views.append(await lent(near, far, piece(process)))
        views.append(await lent(near, far, piece(process)))
        far.memory._borrowed._released = Interrupted()
        heard = reading(near)
        del views[1]
        await until(lambda: process.statistics.bytes_in_use == 0)
        heard.cancel()

    between(check)


def test_a_process_has_one_memory_whichever_threads_ask_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two, segments would have the same numbers, and a peer would read another payload."""

    def slowly() -> int:
        time.sleep(0.05)
        return POOL_BYTES

    monkeypatch.setattr(process_module, "default_pool_bytes", slowly)
    monkeypatch.setattr(process_module, "_made", {})
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(process_memory) for _ in range(4)]
    assert len({id(each.result()) for each in found}) == 1


def test_a_finalizer_in_the_midst_of_the_list_of_links_may_make_a_call(
    process: ProcessMemory,
) -> None:
    """It may write a payload for which an idle segment is closed, of which links are told."""

    class Link:
        def on_segment_closed(self, number: int) -> None:
            told.append(number)

        def __hash__(self) -> int:
            assert process.pieces is not None
            process.trim(1e12)
            return 1

    told: list[int] = []
    link = Link()
    piece(process)
    adding = threading.Thread(target=process.add, args=(link,), daemon=True)
    adding.start()
    adding.join(5)
    assert not adding.is_alive()
