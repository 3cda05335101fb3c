"""Who may wait for a slot at a full replica, for how long, and which slot it gets."""

from __future__ import annotations

import asyncio

import pytest

from serve_grpc.replica.standby import MAX_STANDBY, STAND_BY_S, SlotRelay, StandbyQueue

WARM = 1000


def used_to(duration_ms: float) -> StandbyQueue[str]:
    """A queue at a replica whose requests have taken so long for some time."""
    queue: StandbyQueue[str] = StandbyQueue()
    for _ in range(WARM):
        queue.on_duration(duration_ms)
    return queue


def test_nobody_stands_by_at_a_replica_that_is_not_known() -> None:
    assert StandbyQueue[str]().size(1000) == 0


@pytest.mark.parametrize(
    ("duration_ms", "slots", "size"),
    [
        pytest.param(0.01, 5, MAX_STANDBY, id="short-requests"),
        pytest.param(0.5, 5, 20, id="four-in-the-time-ahead"),
        pytest.param(4.0, 5, 2, id="half-a-request-a-slot"),
        pytest.param(4.0, 1, 0, id="one-slot"),
        pytest.param(50.0, 5, 0, id="long-requests"),
        pytest.param(50.0, 200, 8, id="long-requests-in-many-slots"),
    ],
)
def test_as_many_stand_by_as_the_slots_get_through_in_the_time_ahead(
    duration_ms: float, slots: int, size: int
) -> None:
    # A hair shorter, as the mean never quite arrives.
    assert used_to(duration_ms * 0.999).size(slots) == size


def test_a_few_long_requests_among_short_ones_end_it() -> None:
    queue = used_to(0.05)
    queue.on_duration(500.0)
    assert queue.size(5) == 0


def test_first_come_first_served() -> None:
    queue = used_to(0.05)
    for name in "abc":
        queue.add(name, 0.0)
    assert [queue.take() for _ in range(4)] == ["a", "b", "c", None]


def test_those_whose_time_is_over_are_late_and_the_others_stay() -> None:
    queue = used_to(0.05)
    queue.add("old", 0.0)
    queue.add("young", STAND_BY_S / 2)
    assert queue.take_late(STAND_BY_S) == ["old"]
    assert len(queue) == 1
    assert queue.take() == "young"


def test_nobody_else_stands_by_after_one_was_late() -> None:
    queue = used_to(0.05)
    queue.add("old", 0.0)
    queue.take_late(STAND_BY_S)
    assert queue.size(1000) == 0


def test_in_time_is_not_late() -> None:
    queue = used_to(0.05)
    queue.add("one", 0.0)
    assert queue.take_late(STAND_BY_S / 2) == []
    assert queue.size(5) == MAX_STANDBY


# ------------------------------------------------------------ slots that change hands


class Slots:
    """A relay over a queue, and what it does with slots."""

    def __init__(self) -> None:
        self.queue: StandbyQueue[str] = StandbyQueue()
        self.relay = SlotRelay(self.queue, asyncio.get_running_loop(), self.run, self.given_back)
        self.ran: list[str] = []
        self.back = 0

    async def run(self, request: str) -> None:
        self.ran.append(request)
        if self.queue:
            self.relay.add()
        else:
            self.back += 1

    def given_back(self, count: int) -> None:
        self.back += count

    def wait(self, *requests: str) -> None:
        for request in requests:
            self.queue.add(request, 0.0)
        self.relay.expect(len(requests))
        for _ in requests:
            self.relay.start_one()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_one_slot_serves_all_that_stand_by_in_one_turn() -> None:
    async def main() -> None:
        slots = Slots()
        slots.wait("a", "b", "c")
        slots.relay.add()
        await turns(1)
        assert (slots.ran, slots.back) == (["a", "b", "c"], 1)

    asyncio.run(main())


def test_without_a_slot_nobody_runs_and_a_later_one_is_used() -> None:
    async def main() -> None:
        slots = Slots()
        slots.wait("a", "b")
        await turns(2)
        assert slots.ran == []
        slots.relay.add()
        await turns(3)
        assert (slots.ran, slots.back) == (["a", "b"], 1)

    asyncio.run(main())


@pytest.mark.parametrize("spare", [2, 3, 5])
def test_slots_that_nobody_needs_are_given_back(spare: int) -> None:
    async def main() -> None:
        slots = Slots()
        slots.wait("a", "b")
        for _ in range(spare):
            slots.relay.add()
        await turns(3)
        assert (slots.ran, slots.back) == (["a", "b"], spare)

    asyncio.run(main())


def test_slots_are_given_back_when_those_that_stood_by_were_late() -> None:
    async def main() -> None:
        slots = Slots()
        slots.wait("a", "b")
        slots.relay.add()
        assert slots.queue.take_late(STAND_BY_S) == ["a", "b"]
        await turns(2)
        assert (slots.ran, slots.back) == ([], 1)

    asyncio.run(main())


def test_a_slot_for_an_empty_queue_is_given_back_at_once() -> None:
    async def main() -> None:
        slots = Slots()
        slots.relay.add()
        assert slots.back == 1

    asyncio.run(main())
