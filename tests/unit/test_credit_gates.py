"""Where a producer waits for credit: on an event loop, and in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve_grpc.streams.credit_gates import LoopGate, ThreadGate

PATIENCE_S = 30.0


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_loop_gate_with_credit_lets_through_without_a_pass_of_the_loop() -> None:
    async def enter_all() -> None:
        gate = LoopGate(3, 1000)
        for _ in range(3):
            with pytest.raises(StopIteration):
                gate.enter(1).send(None)

    asyncio.run(enter_all())


@pytest.mark.parametrize("credit", [(1, 1000), (10, 5)], ids=["items", "bytes"])
def test_a_loop_gate_holds_its_producer_until_a_grant(credit: tuple[int, int]) -> None:
    async def main() -> tuple[int, int]:
        gate = LoopGate(*credit)
        sent: list[int] = []

        async def produce() -> None:
            for number in range(3):
                await gate.enter(5)
                sent.append(number)

        task = asyncio.create_task(produce())
        await settle()
        before = len(sent)
        gate.grant(2, 10)
        await task
        return before, len(sent)

    assert asyncio.run(main()) == (1, 3)


def test_a_grant_that_is_not_enough_wakes_nobody() -> None:
    async def main() -> list[bool]:
        gate = LoopGate(1, 10)
        await gate.enter(100)
        task = asyncio.create_task(gate.enter(1))
        seen = []
        for grant in [(1, 0), (0, 90), (0, 1)]:
            await settle()
            gate.grant(*grant)
            await settle()
            seen.append(task.done())
        await task
        return seen

    assert asyncio.run(main()) == [False, False, True]


def test_a_producer_cancelled_at_a_loop_gate_has_spent_nothing() -> None:
    async def main() -> bool:
        gate = LoopGate(0, 0)
        task = asyncio.create_task(gate.enter(1))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.grant(1, 1)
        return await asyncio.wait_for(gate.enter(1), PATIENCE_S)

    assert asyncio.run(main())


def test_a_closed_loop_gate_lets_its_producer_go_its_way() -> None:
    async def main() -> None:
        gate = LoopGate(0, 0)
        task = asyncio.create_task(gate.enter(1))
        await settle()
        assert not task.done()
        gate.close()
        assert await asyncio.wait_for(task, PATIENCE_S) is False
        gate.grant(9, 9)
        assert await gate.enter(1) is False

    asyncio.run(main())


class Producer:
    """A thread that enters a gate until it is told to stop."""

    def __init__(self, gate: ThreadGate, size: int) -> None:
        self.count = 0
        self.entered = threading.Condition()
        self._gate = gate
        self._size = size
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while self._gate.enter(self._size):
            with self.entered:
                self.count += 1
                self.entered.notify()

    def wait_for(self, count: int) -> bool:
        with self.entered:
            return self.entered.wait_for(lambda: self.count >= count, PATIENCE_S)


@contextmanager
def producing(gate: ThreadGate, size: int = 1) -> Iterator[Producer]:
    producer = Producer(gate, size)
    try:
        yield producer
    finally:
        gate.close()
        producer.thread.join(PATIENCE_S)


@pytest.mark.parametrize(("credit", "allowed"), [((3, 1000), 3), ((1000, 10), 2)])
def test_a_thread_gate_lets_through_what_was_granted_and_no_more(
    credit: tuple[int, int], allowed: int
) -> None:
    gate = ThreadGate(*credit)
    with producing(gate, size=5) as producer:
        assert producer.wait_for(allowed)
        gate.grant(2, 10)
        assert producer.wait_for(allowed + 2)
    assert not producer.thread.is_alive()
    assert producer.count == allowed + 2


def test_closing_a_thread_gate_releases_a_sleeping_producer() -> None:
    gate = ThreadGate(0, 0)
    with producing(gate) as producer:
        pass
    assert not producer.thread.is_alive()
    assert producer.count == 0


def test_a_closed_thread_gate_lets_nothing_through_even_with_credit() -> None:
    gate = ThreadGate(10, 10)
    gate.close()
    assert gate.enter(1) is False
