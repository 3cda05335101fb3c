"""Unproven peers: few are read from, nobody stays for long, the newest goes first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_grpc.carriers.cut_off import CutOff
from serve_grpc.carriers.link import Cause
from serve_grpc.carriers.loopback import LoopbackLink, pair
from serve_grpc.entrance import unproven as module
from serve_grpc.entrance.unproven import UnprovenPeer, UnprovenPeers

MiB = 2**20


class Peer:
    """A peer on a link, that is read from for as long as it may be."""

    def __init__(self, unproven: UnprovenPeers, name: str, order: list[str]) -> None:
        self.aborted: str | None = None
        self.visit: UnprovenPeer | None = None
        self._name, self._order = name, order
        self.task = asyncio.ensure_future(self._run(unproven))

    async def _run(self, unproven: UnprovenPeers) -> None:
        async with CutOff(self._link()) as cut_off:
            self.visit = await unproven.enter(cut_off)
            self._order.append(self._name)
            try:
                await asyncio.Event().wait()
            finally:
                self.visit.leave()

    def _link(self) -> LoopbackLink:
        link, _ = pair()
        abort = link.abort

        async def abort_and_note(cause: Cause, reason: str) -> None:
            assert cause is Cause.LIMIT
            self.aborted = reason
            await abort(cause, reason)

        link.abort = abort_and_note  # type: ignore[method-assign]
        return link


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(main: Any) -> None:
    asyncio.run(main)


@pytest.mark.parametrize(
    ("message", "places"), [(1, 256), (4 * MiB, 64), (64 * MiB, 4), (2**31, 4)]
)
def test_places_are_as_many_as_fit_the_memory(message: int, places: int) -> None:
    assert UnprovenPeers(message).max_reading == places


def test_who_finds_no_place_waits_and_the_newest_goes_first() -> None:
    async def main() -> None:
        unproven, order = UnprovenPeers(64 * MiB), list[str]()
        inside = [Peer(unproven, "inside", order) for _ in range(4)]
        await turns()
        waiting = [Peer(unproven, name, order) for name in ("first", "second", "third")]
        await turns()
        assert (len(order), unproven.count) == (4, 7)
        for one in inside[:2]:
            assert one.visit is not None
            one.visit.leave()
        await turns()
        assert order[4:] == ["third", "second"]
        for one in (*inside, *waiting):
            one.task.cancel()
        await turns()
        assert unproven.count == 0

    run(main())


def test_the_oldest_makes_room_once_it_was_there_for_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)

    async def main() -> None:
        unproven, order = UnprovenPeers(64 * MiB), list[str]()
        inside = [Peer(unproven, "inside", order) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert all(not one.task.done() for one in inside), "nobody waits, so all may stay"
        late = Peer(unproven, "late", order)
        await asyncio.wait([inside[0].task], timeout=5)
        await turns()
        assert order[-1] == "late"
        assert inside[0].aborted == "no proof of membership came in time"
        for one in (*inside[1:], late):
            one.task.cancel()
        await turns()

    run(main())


def test_nobody_stays_without_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def main() -> None:
        unproven = UnprovenPeers(64 * MiB)
        peers = [Peer(unproven, "", []) for _ in range(6)]
        await asyncio.wait([one.task for one in peers], timeout=5)
        assert [one.aborted for one in peers] == ["no proof of membership came in time"] * 6
        assert unproven.count == 0

    run(main())


def test_the_row_of_those_who_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)

    async def main() -> None:
        unproven, order = UnprovenPeers(64 * MiB), list[str]()
        peers = [Peer(unproven, str(number), order) for number in range(10)]
        await turns()
        assert unproven.count == 7
        ended = [number for number, one in enumerate(peers) if one.aborted]
        assert ended == [4, 5, 6]
        for one in peers:
            one.task.cancel()
        await turns()

    run(main())


def test_a_member_that_left_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.02)

    async def main() -> None:
        unproven = UnprovenPeers(64 * MiB)
        one = Peer(unproven, "", [])
        await turns()
        assert one.visit is not None
        one.visit.leave()
        await asyncio.wait([one.task], timeout=0.1)
        assert not one.task.done()
        one.task.cancel()
        await turns()

    run(main())
