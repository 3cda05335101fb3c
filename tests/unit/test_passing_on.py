"""Payloads that go on unopened from one local link to another: three processes' ends, in one.

A is the owner, B the one in the middle, C reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from serve_grpc.arguments import Pickled
from serve_grpc.carriers.link import Cause
from serve_grpc.carriers.local import memory as memory_module
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.payload import LARGE_BYTES, Segments, joined, pieces
from serve_grpc.pickling import plain_pickle
from serve_grpc.protocol.places import Place
from serve_grpc.serialization import get_serializer
from serve_grpc.shared_memory.process import ProcessMemory
from serve_grpc.shared_memory.segments import is_available
from tests.unit.test_pickled_buffers import VALUES, same

pytestmark = pytest.mark.skipif(not is_available(), reason="this platform has no memfd")

POOL_BYTES = 64 * 1024 * 1024
CLOUDPICKLE = get_serializer("cloudpickle")
SEED = np.random.default_rng(1).random(20_000)


class Hop:
    """A link between two processes."""

    def __init__(self, near: LocalLink, far: LocalLink) -> None:
        self.near, self.far = near, far
        self._readers: list[asyncio.Task[Any]] = []
        self.arrived: list[asyncio.Queue[bytes]] = []
        for link in (near, far):
            queue: asyncio.Queue[bytes] = asyncio.Queue()
            self.arrived.append(queue)
            self._readers.append(asyncio.ensure_future(self._read(link, queue)))

    async def _read(self, link: LocalLink, queue: asyncio.Queue[bytes]) -> None:
        # Frames about memory are read beside messages.
        with contextlib.suppress(Exception):
            while (message := await link.read()) is not None:
                queue.put_nowait(message)

    async def carry(self, payload: Any, places: list[Place | None] | None = None) -> Segments:
        """A payload from the near end to the far one, as sessions carry it."""
        assert self.near.memory is not None
        assert self.far.memory is not None
        came: list[Any] = []
        found = [
            self.near.memory.lend(memoryview(part)) if len(part) >= LARGE_BYTES else None
            for part in pieces(payload)
        ]
        await self.near.write(b"it is there")
        assert await self.arrived[1].get() == b"it is there"
        for part, place in zip(pieces(payload), found, strict=True):
            came.append(bytes(part) if place is None else self.far.memory.borrow(place))
        if places is not None:
            places += [place for place in found if place is not None]
        return Segments(came)

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await self.near.close()
        await self.far.close()


class Chain:
    """A, B and C with their memories, and the links between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.a, self.b, self.c = (ProcessMemory(POOL_BYTES) for _ in range(3))
        self._patch = monkeypatch
        self._hops: list[Hop] = []

    def hop(self, near: ProcessMemory, far: ProcessMemory) -> Hop:
        sockets = socket.socketpair(socket.AF_UNIX)
        ends = []
        for memory, end in zip((near, far), sockets, strict=True):
            self._patch.setattr(memory_module, "process_memory", lambda memory=memory: memory)
            ends.append(LocalLink(end, is_accepted=False))
        self._hops.append(Hop(*ends))
        return self._hops[-1]

    async def close(self) -> None:
        for hop in self._hops:
            await hop.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    @contextlib.asynccontextmanager
    async def chain() -> AsyncIterator[tuple[Chain, Hop, Hop]]:
        made = Chain(monkeypatch)
        first, second = made.hop(made.a, made.b), made.hop(made.b, made.c)
        try:
            yield made, first, second
        finally:
            await made.close()

    def run(check: Callable[[Chain, Hop, Hop], Awaitable[None]]) -> None:
        async def main() -> None:
            async with chain() as (made, first, second):
                await check(made, first, second)

        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(asyncio.wait_for(main(), 30))
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before + 3 * 2  # of living pools, not of links

    return run


async def until(condition: Callable[[], bool]) -> None:
    turns = 0
    while not condition():
        await asyncio.sleep(0.001)
        turns += 1
        if turns % 20 == 0:  # with much that other tests left, it takes a tenth of a second
            gc.collect()


async def idle(*memories: ProcessMemory) -> None:
    """Nobody reads anything of theirs."""
    await until(lambda: all(memory.statistics.bytes_in_use == 0 for memory in memories))


def dumped(value: Any, memory: ProcessMemory) -> Any:
    """`value` as the result of a call, in the memory of a process."""
    return CLOUDPICKLE.dump_response(value, memory.pieces)


def passed(payload: Segments, memory: ProcessMemory, *more: Any) -> Any:
    """The same as an argument of another call."""
    return CLOUDPICKLE.dump_request((Pickled(payload), *more), {}, memory.pieces)


def loaded(payload: Segments) -> Any:
    (value, *_), _ = CLOUDPICKLE.load_request(payload)
    return value


LARGE = [kind for kind, value in VALUES.items() if len(pickle.dumps(value)) >= LARGE_BYTES]


@pytest.mark.parametrize("kind", LARGE)
def test_a_value_arrives_the_same_and_the_middle_copies_nothing(run: Any, kind: str) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(VALUES[kind], chain.a))
        request = passed(came, chain.b, "beside it")
        places: list[Place | None] = []
        value = loaded(await second.carry(request, places))
        assert same(value, VALUES[kind])
        assert chain.a.statistics.bytes_in_use > 0
        # The first two are put into the pickle by their own class, rows of small ones are copied.
        if kind not in ("not contiguous", "objects", "row of small ones", "small and large ones"):
            assert places
            assert chain.b.statistics.made == 0
        del came, request, value
        await idle(chain.a, chain.b)
        assert chain.a.statistics.bytes_abandoned == 0

    run(check)


def test_nobody_sees_what_another_writes(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(SEED, chain.a))
        requests = [passed(came, chain.b) for _ in range(3)]
        one, other = [loaded(await second.carry(request)) for request in requests[:2]]
        one[:] = 1
        mine = CLOUDPICKLE.load_response(came)
        mine[:] = 2
        again = loaded(await second.carry(requests[2]))  # dumped before, sent after all that
        late = loaded(await second.carry(passed(came, chain.b)))
        for value in (other, again, late, CLOUDPICKLE.load_response(came)):
            assert np.array_equal(value, SEED)
        other[:] = 3
        assert {one[0], mine[0], other[0]} == {1.0, 2.0, 3.0}
        assert chain.b.statistics.made == 0
        del one, mine, other, again, late, value, came, requests
        await idle(chain.a, chain.b)
        # The next payload in the same memory shows nothing of that.
        fresh = await first.carry(dumped(SEED + 1, chain.a))
        assert np.array_equal(loaded(await second.carry(passed(fresh, chain.b))), SEED + 1)
        assert chain.a.statistics.made == 1

    run(check)


def test_what_was_opened_in_the_middle_is_copied_as_it_was_sent(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(SEED, chain.a))
        mine = CLOUDPICKLE.load_response(came)
        mine[:] = 2
        value = loaded(await second.carry(passed(came, chain.b)))
        assert np.array_equal(value, SEED)
        assert chain.b.statistics.made == 1
        del came
        mine[:] = 3
        assert np.array_equal(value, SEED)

    run(check)


@pytest.mark.parametrize("kind", LARGE)
def test_other_peers_read_it_as_well(run: Any, kind: str) -> None:
    """Those of other nodes, and those that know no pickle with its buffers behind it."""

    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(VALUES[kind], chain.a))
        on_the_heap = CLOUDPICKLE.dump_request((Pickled(came),), {}, None)
        request = passed(came, chain.b)
        value = CLOUDPICKLE.load_response(came)
        if isinstance(value, np.ndarray) and value.flags.writeable and value.dtype != object:
            value[:] = value[::-1]
        for payload in (on_the_heap, request):
            for found in (joined(payload), plain_pickle(payload), plain_pickle(joined(payload))):
                (read,), _ = CLOUDPICKLE.load_request(found)
                assert same(read, VALUES[kind])
        (read,), _ = pickle.loads(plain_pickle(request))
        assert same(read, VALUES[kind])

    run(check)


def test_the_owner_waits_for_the_last_of_all_who_read(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        third = chain.hop(chain.b, ProcessMemory(POOL_BYTES))
        came = await first.carry(dumped(SEED, chain.a))
        request = passed(came, chain.b)
        values = [loaded(await hop.carry(request)) for hop in (second, third)]
        del came, request
        for left in (1, 0):
            for _ in range(20):
                other = await first.carry(dumped(SEED + 7, chain.a))
                assert np.array_equal(CLOUDPICKLE.load_response(other), SEED + 7)
            assert all(np.array_equal(value, SEED) for value in values)
            assert chain.a.statistics.bytes_in_use > 0
            del values[left], other
        await idle(chain.a, chain.b)
        assert chain.a.statistics.bytes_abandoned == 0

    run(check)


@pytest.mark.parametrize("lost", ["A-B", "B-C"])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_whatever_link_is_lost_nobody_writes_to_what_is_read(run: Any, lost: str, how: str) -> None:
    """All three live on: only a link has ended, and C still holds its value."""

    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(SEED, chain.a))
        value = loaded(await second.carry(passed(came, chain.b)))
        hop = first if lost == "A-B" else second
        if how == "abort":
            await hop.near.abort(Cause.LEFT, "lost")
        await hop.near.close()
        await hop.far.close()
        del came
        # The owner does not keep it for ever, and never uses that memory again.
        await idle(chain.a, chain.b)
        assert chain.a.statistics.segments == 0
        again = first if lost == "B-C" else chain.hop(chain.a, chain.b)
        for _ in range(5):
            other = await again.carry(dumped(SEED + 7, chain.a))
            assert np.array_equal(CLOUDPICKLE.load_response(other), SEED + 7)
            del other
        assert np.array_equal(value, SEED)
        value[:] = 5
        await idle(chain.a, chain.b)

    run(check)


def test_a_value_that_waits_in_the_middle_outlives_its_owner(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(SEED, chain.a))
        request = passed(came, chain.b)
        await first.close()
        places: list[Place | None] = []
        value = loaded(await second.carry(request, places))  # in the stream
        assert places == []
        assert np.array_equal(value, SEED)
        assert np.array_equal(loaded(await second.carry(passed(came, chain.b), places)), SEED)
        assert len(places) == 1  # copied

    run(check)


@pytest.mark.parametrize("short", ["B", "C"])
def test_who_cannot_map_the_memory_copies_and_reads_the_same(run: Any, short: str) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        end = first.far if short == "B" else second.far
        assert end.memory is not None
        end.memory._memory.most_mapped = 4096  # no segment is so small
        came = await first.carry(dumped(SEED, chain.a))
        places: list[Place | None] = []
        value = loaded(await second.carry(passed(came, chain.b), places))
        assert len(places) == 1
        assert np.array_equal(value, SEED)
        assert chain.b.statistics.made == (short == "B")  # the copy is passed on as its own
        value[:] = 1
        assert np.array_equal(CLOUDPICKLE.load_response(came), SEED)
        del came, value
        await idle(chain.a, chain.b)
        assert chain.a.statistics.bytes_abandoned == 0

    run(check)


def test_the_reader_forgets_what_its_owner_has_closed(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        came = await first.carry(dumped(SEED, chain.a))
        value = loaded(await second.carry(passed(came, chain.b)))
        memory = second.far.memory
        assert memory is not None
        assert memory._borrowed.mappings.bytes > 0
        del came, value
        await idle(chain.a, chain.b)
        assert memory._borrowed.mappings.bytes > 0  # warm, for the next one
        chain.a.trim(1e12)
        await until(lambda: memory._borrowed.mappings.bytes == 0)
        assert first.far.memory is not None
        assert first.far.memory._borrowed.mappings.bytes == 0

    run(check)


def test_a_payload_goes_round_to_its_owner(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        home = chain.hop(chain.b, chain.a)
        came = await first.carry(dumped(SEED, chain.a))
        value = loaded(await home.carry(passed(came, chain.b)))
        value[:] = 1
        assert np.array_equal(CLOUDPICKLE.load_response(came), SEED)
        assert chain.a.statistics.made == 1
        del value, came
        await idle(chain.a, chain.b)

    run(check)


def test_a_reader_that_keeps_all_takes_no_more_than_its_share(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        value = np.full(500_000, 1.0)
        kept, lent = [], 0
        for _ in range(20):  # of 4 MB, where half of 64 MiB may be lent
            came = await first.carry(dumped(value, chain.a))
            places: list[Place | None] = []
            kept.append(loaded(await second.carry(passed(came, chain.b), places)))
            lent += len(places)
            del came
        assert all(np.array_equal(each, value) for each in kept)
        assert 4 <= lent <= 8
        kept.clear()
        await idle(chain.a, chain.b)

    run(check)


def test_many_chains_leave_memory_and_descriptors_as_they_were(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        before = -1
        for number in range(300):
            came = await first.carry(dumped(SEED, chain.a))
            value = loaded(await second.carry(passed(came, chain.b)))
            assert value[-1] == SEED[-1]
            value[0] = number
            del came, value
            await idle(chain.a, chain.b)
            if number == 10:
                before = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= before
        assert chain.a.statistics.made == 1
        assert chain.b.statistics.made == 0

    run(check)
