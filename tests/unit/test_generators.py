"""How a replica runs the user's generators: order, credit, cancels, and what is no generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from serve_grpc._serve.replicas import UserMethod
from serve_grpc.replica.streams import ITEMS_PER_TURN, stream_in_this_thread, stream_on_loop
from serve_grpc.streams.credit_gates import LoopGate, ThreadGate

ENOUGH = (1000, 1000)


def method(function: Callable[..., Any]) -> UserMethod:
    return UserMethod("numbers", function, False, False)


def dump(item: int) -> bytes:
    return b"%d" % item


async def async_numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


async def numbers_later(count: int) -> Iterator[int]:
    return numbers(count)


@pytest.mark.parametrize("function", [async_numbers, numbers, numbers_later])
def test_items_of_every_kind_of_generator_are_sent_in_order(function: Callable[..., Any]) -> None:
    sent: list[bytes] = []
    gate = LoopGate(*ENOUGH)

    async def run() -> None:
        await stream_on_loop(method(function), (5,), {}, gate, dump, sent.append)

    asyncio.run(run())
    assert sent == [b"0", b"1", b"2", b"3", b"4"]


def test_a_generator_that_never_waits_lets_others_have_a_turn() -> None:
    sent: list[bytes] = []
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(len(sent))
            await asyncio.sleep(0)

    async def run() -> None:
        looking = asyncio.get_running_loop().create_task(look())
        count = 3 * ITEMS_PER_TURN
        await stream_on_loop(
            method(async_numbers), (count,), {}, LoopGate(*ENOUGH), dump, sent.append
        )
        looking.cancel()

    asyncio.run(run())
    assert seen[:3] == [1, ITEMS_PER_TURN, 2 * ITEMS_PER_TURN]


def test_no_item_is_sent_without_credit() -> None:
    sent: list[bytes] = []

    async def run() -> None:
        gate = LoopGate(2, 100)
        running = asyncio.get_running_loop().create_task(
            stream_on_loop(method(async_numbers), (5,), {}, gate, dump, sent.append)
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert sent == [b"0", b"1"]
        gate.grant(10, 100)
        await running

    asyncio.run(run())
    assert len(sent) == 5


def test_a_cancel_is_raised_where_the_generator_waits_for_credit() -> None:
    seen: list[str] = []

    async def minding() -> AsyncIterator[int]:
        try:
            yield 1
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            seen.append("closed")

    async def run() -> None:
        task = asyncio.get_running_loop().create_task(
            stream_on_loop(method(minding), (), {}, LoopGate(0, 0), dump, lambda _: None)
        )
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert seen == ["cancelled", "closed"]


def test_what_is_no_generator_is_an_error_in_the_words_of_serve() -> None:
    async def run() -> None:
        await stream_on_loop(method(lambda: 3), (), {}, LoopGate(*ENOUGH), dump, lambda _: None)

    with pytest.raises(TypeError, match=r"'numbers' with `handle\.options.*` but it did"):
        asyncio.run(run())
    gate = ThreadGate(*ENOUGH)
    with pytest.raises(TypeError, match="did not return a generator"):
        stream_in_this_thread(method(lambda: 3), (), {}, gate, dump, lambda _: None)


def test_a_closed_gate_ends_a_generator_in_a_thread_and_closes_it() -> None:
    sent: list[bytes] = []
    closed: list[bool] = []
    gate = ThreadGate(*ENOUGH)

    def endless() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.append(True)

    def send(payload: bytes) -> None:
        sent.append(payload)
        if len(sent) == 3:
            gate.close()

    stream_in_this_thread(method(endless), (), {}, gate, dump, send)  # type: ignore[arg-type]
    assert (sent, closed) == ([b"0", b"1", b"2"], [True])
