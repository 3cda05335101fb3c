"""Peers that are cut off: by a watch over their silence, and what their task and link see of it."""

from __future__ import annotations

import asyncio

import pytest

from serve_grpc.carriers.cut_off import CutOff
from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.loopback import pair
from serve_grpc.entrance.idle_watch import IdleWatch
from tests.property.virtual_time import run as run_in_virtual_time


class Peer:
    """Notes when it is cut off, on the loop's clock."""

    def __init__(self) -> None:
        self.aborted: list[tuple[float, str]] = []

    def abort(self, reason: str) -> None:
        self.aborted.append((asyncio.get_running_loop().time(), reason))


def test_the_task_is_cancelled_and_the_other_side_is_told_the_first_reason() -> None:
    async def main() -> None:
        near, far = pair()
        entered = asyncio.Event()
        cut_offs = []

        async def work() -> None:
            async with CutOff(near) as cut_off:
                cut_offs.append(cut_off)
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await entered.wait()
        cut_offs[0].abort("too slow")
        cut_offs[0].abort("too late")
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(LinkLost, match="too slow"):
            await far.read()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["done", "failed", "cancelled"])
def test_work_that_ends_by_itself_leaves_the_link_alone(how: str) -> None:
    async def main() -> None:
        near, far = pair()

        async def work() -> None:
            async with CutOff(near):
                await near.write(b"still here")
                if how == "failed":
                    raise ValueError("its own")
                if how == "cancelled":
                    await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        assert await far.read() == b"still here"
        if how == "cancelled":
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        expected = {"done": type(None), "failed": ValueError, "cancelled": asyncio.CancelledError}
        assert type(result) is expected[how]
        await near.write(b"more")
        assert await far.read() == b"more"

    asyncio.run(main())


def test_silence_is_noticed_after_once_to_twice_its_limit() -> None:
    async def main(_: object) -> None:
        peer, loop = Peer(), asyncio.get_running_loop()
        begin_s = loop.time()
        watch = IdleWatch(peer, 10)
        for second in range(35):
            await asyncio.sleep(1)
            watch.messages += second < 25
        assert [(round(at - begin_s), reason) for at, reason in peer.aborted] == []
        await asyncio.sleep(10)
        ((at_s, reason),) = peer.aborted
        assert reason == "nothing was heard for 10 s"
        assert 35 <= at_s - begin_s <= 45
        await asyncio.sleep(50)
        assert len(peer.aborted) == 1  # nothing is watched any more

    run_in_virtual_time(main, 1)


def test_a_watch_that_is_closed_cuts_nobody_off() -> None:
    async def main(_: object) -> None:
        peer = Peer()
        IdleWatch(peer, 10).close()
        await asyncio.sleep(50)
        assert peer.aborted == []

    run_in_virtual_time(main, 1)
