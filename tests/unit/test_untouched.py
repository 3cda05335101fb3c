"""Arrays that were opened in the middle, and go on or back: A owns, B has opened, C reads."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from serve_grpc.carriers.link import Cause
from serve_grpc.payload import joined
from serve_grpc.pickling import plain_pickle
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory.segments import is_available
from serve_grpc.shared_memory.untouched import UNTOUCHED_BYTES
from tests.unit.test_passing_on import CLOUDPICKLE, Chain, Hop, dumped, idle, loaded
from tests.unit.test_passing_on import run as run  # a fixture

pytestmark = pytest.mark.skipif(not is_available(), reason="this platform has no memfd")

SEED = np.random.default_rng(1).random(UNTOUCHED_BYTES // 8)


def opened(payload: Any) -> Any:
    """The value of what A sent, as a handler of B has it."""
    return CLOUDPICKLE.load_response(payload)


async def sent(hop: Hop, value: Any, chain: Chain, places: list[Any] | None = None) -> Any:
    """`value`, from B to C as an argument."""
    request = CLOUDPICKLE.dump_request((value,), {}, chain.b.pieces)
    return loaded(await hop.carry(request, places))


WAYS: dict[str, Any] = {
    "as it came": lambda array: array,
    "of another shape": lambda array: array.reshape(2, -1),
    "of another type": lambda array: array.view(np.int32),
    "transposed": lambda array: array.reshape(2, -1).T,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_read_goes_on_without_a_copy(run: Any, way: str) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        assert mine.sum() == SEED.sum()
        places: list[Place | None] = []
        value = await sent(second, [WAYS[way](mine)], chain, places)
        assert len(places) == 1
        assert chain.b.statistics.made == 0
        assert np.array_equal(value[0], WAYS[way](SEED))
        assert value[0].flags.writeable
        del mine, value
        await idle(chain.a, chain.b)
        assert chain.a.statistics.bytes_abandoned == 0

    run(check)


def test_nobody_sees_what_another_writes(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        home = chain.hop(chain.b, chain.a)
        came = await first.carry(dumped(SEED, chain.a))
        mine = opened(came)
        request = CLOUDPICKLE.dump_request((mine,), {}, chain.b.pieces)
        mine[:] = 1  # what is sent is what it was
        values = [loaded(await hop.carry(request)) for hop in (second, home)]
        for number, value in enumerate(values):
            assert np.array_equal(value, SEED)
            value[:] = 10 + number
        assert chain.b.statistics.made == 0
        assert (mine[0], values[0][0], values[1][0]) == (1, 10, 11)
        assert np.array_equal(opened(came), SEED)
        for payload in (joined(request), plain_pickle(request)):
            assert np.array_equal(CLOUDPICKLE.load_request(payload)[0][0], SEED)
        again = CLOUDPICKLE.load_request(request)[0][0]
        again[:] = 2
        assert np.array_equal(CLOUDPICKLE.load_request(request)[0][0], SEED)
        del came, mine, request, values, value, again
        await idle(chain.a, chain.b)

    run(check)


@pytest.mark.parametrize("where", [0, len(SEED) // 2, -1])
def test_what_was_written_to_is_copied(run: Any, where: int) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        mine[where] = 42
        value = await sent(second, mine, chain)
        assert chain.b.statistics.made == 1
        assert value[where] == 42
        assert np.array_equal(value, mine)
        del mine, value
        await idle(chain.a, chain.b)

    run(check)


@pytest.mark.parametrize("part", [slice(1, None), slice(None, -1)], ids=["end", "beginning"])
def test_a_part_is_copied(run: Any, part: slice) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        value = await sent(second, mine[part], chain)
        assert chain.b.statistics.made == 1
        assert np.array_equal(value, SEED[part])

    run(check)


@pytest.mark.parametrize("lack", ["the kernel's word", "addresses"])
def test_where_it_cannot_be_had_it_is_copied(
    run: Any, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    where: str
    what: object

    def fails(*_: Any) -> None:
        raise OSError("no addresses")

    if lack == "addresses":
        where, what = "serve_grpc.shared_memory.borrowed.map_fd", fails
    else:
        where, what = "serve_grpc.shared_memory.private_pages.PAGEMAP", "/nowhere"

    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        monkeypatch.setattr(where, what)
        assert np.array_equal(await sent(second, mine, chain), SEED)
        assert chain.b.statistics.made == 1

    run(check)


def test_the_owner_waits_for_all_who_read(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        home = chain.hop(chain.b, chain.a)
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        values = [await sent(hop, mine, chain) for hop in (second, home, second)]
        del mine
        for left in (2, 1, 0):
            for _ in range(5):
                other = await first.carry(dumped(SEED + 7, chain.a))
                assert np.array_equal(opened(other), SEED + 7)
            assert all(np.array_equal(value, SEED) for value in values)
            assert chain.a.statistics.bytes_in_use > 0
            del values[left], other
        await idle(chain.a, chain.b)
        assert chain.a.statistics.bytes_abandoned == 0

    run(check)


@pytest.mark.parametrize("lost", ["A-B", "B-C"])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_whatever_link_is_lost_nobody_writes_to_what_is_read(run: Any, lost: str, how: str) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        value = await sent(second, mine, chain)
        hop = first if lost == "A-B" else second
        if how == "abort":
            await hop.near.abort(Cause.LEFT, "lost")
        await hop.near.close()
        await hop.far.close()
        del mine
        await idle(chain.a, chain.b)
        again = first if lost == "B-C" else chain.hop(chain.a, chain.b)
        for _ in range(5):
            assert np.array_equal(opened(await again.carry(dumped(SEED + 7, chain.a))), SEED + 7)
        assert np.array_equal(value, SEED)

    run(check)


def test_what_is_sent_when_the_owner_is_lost_travels(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        mine = opened(await first.carry(dumped(SEED, chain.a)))
        request = CLOUDPICKLE.dump_request((mine,), {}, chain.b.pieces)
        mine[:] = 1
        await first.close()
        places: list[Place | None] = []
        assert np.array_equal(loaded(await second.carry(request, places)), SEED)
        assert places == []
        assert chain.b.statistics.made == 0
        assert np.array_equal(await sent(second, mine, chain), mine)
        assert chain.b.statistics.made == 1

    run(check)


def test_many_of_them_leave_memory_and_descriptors_as_they_were(run: Any) -> None:
    async def check(chain: Chain, first: Hop, second: Hop) -> None:
        home, before = chain.hop(chain.b, chain.a), -1
        for number in range(200):
            mine = opened(await first.carry(dumped(SEED, chain.a)))
            value = await sent(home, mine, chain)
            assert value[-1] == SEED[-1]
            value[0] = mine[0] = number
            del mine, value
            await idle(chain.a, chain.b)
            if number == 10:
                before = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= before
        assert (chain.a.statistics.made, chain.b.statistics.made) == (1, 0)

    run(check)
