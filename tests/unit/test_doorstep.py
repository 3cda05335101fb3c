"""Strangers at the doorstep: few are read from, nobody stays for long, the newest goes first."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from serve_grpc.transport import doorstep as module
from serve_grpc.transport.doorstep import Doorstep, Visit
from serve_grpc.transport.ending import Ending

MiB = 2**20


class Context:
    """gRPC's, as far as an ending uses it."""

    def __init__(self) -> None:
        self.aborted: str | None = None

    async def abort(self, code: grpc.StatusCode, details: str, **_: object) -> None:
        self.aborted = details
        raise grpc.RpcError(details)


class Stranger:
    """A call that is read from for as long as it may be."""

    def __init__(self, doorstep: Doorstep, name: str, order: list[str]) -> None:
        self.context = Context()
        self.visit: Visit | None = None
        self._name, self._order = name, order
        self.task = asyncio.ensure_future(self._run(doorstep))

    async def _run(self, doorstep: Doorstep) -> None:
        async with Ending(self.context) as ending:
            self.visit = await doorstep.enter(ending)
            self._order.append(self._name)
            try:
                await asyncio.Event().wait()
            finally:
                self.visit.leave()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(main: Any) -> None:
    asyncio.run(main)


@pytest.mark.parametrize(
    ("message", "places"), [(1, 256), (4 * MiB, 64), (64 * MiB, 4), (2**31, 4)]
)
def test_places_are_as_many_as_fit_the_memory(message: int, places: int) -> None:
    assert Doorstep(message).places == places


def test_who_finds_no_place_waits_and_the_newest_goes_first() -> None:
    async def main() -> None:
        doorstep, order = Doorstep(64 * MiB), list[str]()
        inside = [Stranger(doorstep, "inside", order) for _ in range(4)]
        await turns()
        waiting = [Stranger(doorstep, name, order) for name in ("first", "second", "third")]
        await turns()
        assert (len(order), doorstep.strangers) == (4, 7)
        for one in inside[:2]:
            assert one.visit is not None
            one.visit.leave()
        await turns()
        assert order[4:] == ["third", "second"]
        for one in (*inside, *waiting):
            one.task.cancel()
        await turns()
        assert doorstep.strangers == 0

    run(main())


def test_the_oldest_makes_room_once_it_was_there_for_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)

    async def main() -> None:
        doorstep, order = Doorstep(64 * MiB), list[str]()
        inside = [Stranger(doorstep, "inside", order) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert all(not one.task.done() for one in inside), "nobody waits, so all may stay"
        late = Stranger(doorstep, "late", order)
        await asyncio.wait([inside[0].task], timeout=5)
        await turns()
        assert order[-1] == "late"
        assert inside[0].context.aborted == "no proof of membership came in time"
        for one in (*inside[1:], late):
            one.task.cancel()
        await turns()

    run(main())


def test_nobody_stays_without_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def main() -> None:
        doorstep = Doorstep(64 * MiB)
        strangers = [Stranger(doorstep, "", []) for _ in range(6)]
        await asyncio.wait([one.task for one in strangers], timeout=5)
        assert [one.context.aborted for one in strangers] == [
            "no proof of membership came in time"
        ] * 6
        assert doorstep.strangers == 0

    run(main())


def test_the_row_of_those_who_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)

    async def main() -> None:
        doorstep, order = Doorstep(64 * MiB), list[str]()
        strangers = [Stranger(doorstep, str(number), order) for number in range(10)]
        await turns()
        assert doorstep.strangers == 7
        ended = [number for number, one in enumerate(strangers) if one.context.aborted]
        assert ended == [4, 5, 6]
        for one in strangers:
            one.task.cancel()
        await turns()

    run(main())


def test_a_member_that_left_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.02)

    async def main() -> None:
        doorstep = Doorstep(64 * MiB)
        one = Stranger(doorstep, "", [])
        await turns()
        assert one.visit is not None
        one.visit.leave()
        await asyncio.wait([one.task], timeout=0.1)
        assert not one.task.done()
        one.task.cancel()
        await turns()

    run(main())
