"""A router takes long news in parts, between which the loop has its turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_grpc.caller.replicas import Replicas
from serve_grpc.caller.router import PART
from serve_grpc.routing.peer import ReplicaFacts
from tests.fakes.small_fleet import SmallFleet, on_small_fleet

COUNT = 4 * PART + 1


class Updates:
    """What a router's `Replicas` are told, and what it says of itself meanwhile."""

    def __init__(self, fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[tuple[int, int]] = []
        self.ready: list[bool] = []
        self.held: set[str] = set()
        self._router = fleet.router
        update = Replicas.update

        def noted(replicas: Any, changed: Any, gone: Any) -> None:
            self.parts.append((len(changed), len(gone)))
            self.ready.append(self._router.feed.is_ready)
            self.held.difference_update(gone)
            self.held.update(facts.replica_id for facts in changed)
            update(replicas, changed, gone)

        monkeypatch.setattr(Replicas, "update", noted)

    async def settle(self, parts: int) -> None:
        """Until so many parts have come."""
        for _ in range(100):
            if len(self.parts) >= parts:
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(self.parts) == parts


def facts(first: int, *, takes_inputs: bool = True) -> list[ReplicaFacts]:
    return [
        ReplicaFacts(f"{first + number}", "nowhere:1", takes_inputs=takes_inputs)
        for number in range(COUNT)
    ]


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_grpc.pacing.SLICE_S", 0.0)


def test_the_first_list_is_taken_in_parts_and_calls_wait_for_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(fleet: SmallFleet) -> None:
        updates = Updates(fleet, monkeypatch)
        fleet.adapter.tell(facts(0))
        assert len(updates.parts) <= 1
        await updates.settle(5)
        assert updates.parts == [*[(PART, 0)] * 4, (1, 0)]
        assert updates.ready == [False] * 5
        assert fleet.router.feed.is_ready

    on_small_fleet(main)


def test_what_replicas_take_is_known_before_calls_go_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(fleet: SmallFleet) -> None:
        updates = Updates(fleet, monkeypatch)
        fleet.adapter.tell(facts(0))
        await updates.settle(5)
        updates.parts.clear()
        updates.ready.clear()
        fleet.adapter.tell(facts(COUNT, takes_inputs=False))
        fleet.adapter.tell(facts(2 * COUNT))  # while the one before is being taken
        await updates.settle(20)
        gone_then_changed = [*[(0, PART)] * 4, (0, 1), *[(PART, 0)] * 4, (1, 0)]
        assert updates.parts == 2 * gone_then_changed
        assert all(updates.ready)
        assert updates.held == {each.replica_id for each in facts(2 * COUNT)}
        assert fleet.router.feed.takes_inputs

    on_small_fleet(main)


def test_a_router_that_is_closed_meanwhile_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(fleet: SmallFleet) -> None:
        updates = Updates(fleet, monkeypatch)
        fleet.adapter.tell(facts(0))
        while len(updates.parts) < 2:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        fleet.router.close("closed")
        await updates.settle(3)
        assert updates.parts[2] == (0, 2 * PART)
        assert updates.held == set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(updates.parts) == 3

    on_small_fleet(main)


@pytest.mark.parametrize("turns", range(12))
def test_a_router_that_is_closed_lets_go_of_those_that_are_about_to(turns: int) -> None:
    async def main(fleet: SmallFleet) -> None:
        fleet.adapter.tell(facts(0))
        while not fleet.router.feed.is_ready:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        fleet.adapter.tell(facts(COUNT))
        for _ in range(turns):
            await asyncio.sleep(0)
        fleet.router.close("closed")
        for _ in range(40):
            await asyncio.sleep(0)
        assert fleet.router.line.replicas.peers == ()

    on_small_fleet(main)
