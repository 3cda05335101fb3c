"""The carrier in memory: its weather, its window, and who is told what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_grpc.carriers.link import Cause, Link, LinkLost
from serve_grpc.carriers.loopback import WINDOW, loopback_dial, pair
from serve_grpc.config import Settings
from tests.property.virtual_time import run as run_in_virtual_time


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_pipe_takes_as_many_messages_as_its_window() -> None:
    async def main() -> None:
        near, far = pair()
        for _ in range(WINDOW):
            near.write(b"").close()  # a coroutine that never began has written nothing
            await near.write(b"in the window")
        waiting = asyncio.ensure_future(near.write(b"one more"))
        await settle()
        assert not waiting.done()
        assert await far.read() == b"in the window"
        await settle()
        assert waiting.done()

    asyncio.run(main())


def test_a_write_that_was_cancelled_is_still_under_way() -> None:
    async def main() -> None:
        near, far = pair(window=1)
        await near.write(b"1")
        waiting = asyncio.ensure_future(near.write(b"2"))
        await settle()
        waiting.cancel()
        await settle()
        with pytest.raises(RuntimeError, match="under way"):
            await near.write(b"3")
        assert [await far.read(), await far.read()] == [b"1", b"2"]
        await near.write(b"4")
        assert await far.read() == b"4"

    asyncio.run(main())


def test_a_reader_that_was_cancelled_takes_nothing_away() -> None:
    async def main() -> None:
        near, far = pair()
        reading = asyncio.ensure_future(far.read())
        await settle()
        reading.cancel()
        await settle()
        await near.write(b"1")
        assert await far.read() == b"1"

    asyncio.run(main())


def test_what_is_held_arrives_when_it_is_let_go() -> None:
    async def main() -> None:
        near, far = pair(window=2)
        near.hold(True)
        await near.write(b"1")
        await far.write(b"the other way is open")
        reading = asyncio.ensure_future(far.read())
        await settle()
        assert not reading.done()
        assert await near.read() == b"the other way is open"
        await near.write(b"2")
        full = asyncio.ensure_future(near.write(b"3"))
        await settle()
        assert not full.done()
        near.hold(False)
        assert [await reading, await far.read(), await far.read()] == [b"1", b"2", b"3"]
        await full

    asyncio.run(main())


def test_an_end_is_held_too() -> None:
    async def main() -> None:
        near, far = pair()
        near.hold(True)
        await near.close()
        reading = asyncio.ensure_future(far.read())
        await settle()
        assert not reading.done()
        near.hold(False)
        assert await reading is None

    asyncio.run(main())


@pytest.mark.parametrize("by", [0, 1])
def test_a_cut_loses_what_is_on_its_way_on_both_sides(by: int) -> None:
    async def main() -> None:
        ends = pair(window=1)
        near, far = ends
        await near.write(b"1")
        waiting = asyncio.ensure_future(near.write(b"2"))
        await settle()
        reading = asyncio.ensure_future(near.read())
        await settle()
        ends[by].cut("a digger")
        for lost in (waiting, reading, far.read(), far.write(b"3"), near.write(b"4")):
            with pytest.raises(LinkLost, match="a digger"):
                await lost
        await near.close()
        await near.abort(Cause.LEFT, "too late")
        with pytest.raises(LinkLost, match="a digger"):
            await far.read()

    asyncio.run(main())


def test_messages_that_are_delayed_stay_in_order_and_their_end_comes_last() -> None:
    async def main(rng: Any) -> None:
        near, far = pair(window=100, delay=lambda: rng.uniform(0, 5))
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        for number in range(50):
            await near.write(b"%d" % number)
        await near.close()
        arrived = []
        while (message := await far.read()) is not None:
            arrived.append(message)
        assert arrived == [b"%d" % number for number in range(50)]
        assert 1 < loop.time() - begin_s < 6

    run_in_virtual_time(main, 1)


def test_the_other_side_cannot_write_to_an_end_that_is_closed() -> None:
    async def main() -> None:
        near, far = pair(window=1)
        await far.write(b"1")
        waiting = asyncio.ensure_future(far.write(b"2"))
        await settle()
        await near.close()
        with pytest.raises(LinkLost, match="the link is closed"):
            await waiting
        assert await far.read() is None

    asyncio.run(main())


def test_a_dial_runs_the_server_with_the_other_end_and_closes_it_after() -> None:
    ended = []

    async def serve(link: Link) -> None:
        message = await link.read()
        assert message is not None
        await link.write(message.upper())
        ended.append(message)

    async def main() -> None:
        dial = loopback_dial(serve)
        for address in (b"one", b"two"):
            link = await dial(address.decode(), Settings())
            await link.write(address)
            assert await link.read() == address.upper()
            assert await link.read() is None
            await link.close()

    asyncio.run(main())
    assert ended == [b"one", b"two"]


def test_a_server_that_fails_ends_its_link_with_the_error(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(link: Link) -> None:
        raise ValueError("no sense")

    async def main() -> None:
        link = await loopback_dial(serve)("", Settings())
        with pytest.raises(LinkLost, match="no sense"):
            await link.read()

    asyncio.run(main())
    assert "was not served to its end" in caplog.text
