"""Session: both machines, bytes in and bytes out, in batches and with one large payload."""

from __future__ import annotations

from typing import Any

import pytest

from bench.micro.pair import BATCH, Pair

PAYLOADS = [
    pytest.param(0, id="0 B"),
    pytest.param(100, id="100 B"),
    pytest.param(10_000, id="10 kB"),
]


@pytest.mark.parametrize("size", PAYLOADS)
def test_requests_queued_and_taken(cost: Any, size: int) -> None:
    pair = Pair(b"x" * size)
    sent: list[bytes] = pair.request()

    def finish_the_last_ones() -> tuple[()]:
        nonlocal sent
        assert pair.finish(pair.reply(pair.arrive(sent))) == BATCH
        return ()

    def request() -> None:
        nonlocal sent
        sent = pair.request()

    cost.of_prepared(request, finish_the_last_ones, part="session", side="caller", calls=BATCH)


@pytest.mark.parametrize("size", PAYLOADS)
def test_requests_received(cost: Any, size: int) -> None:
    pair = Pair(b"x" * size)

    def requests() -> tuple[list[bytes]]:
        return (pair.request(),)

    received = cost.of_prepared(pair.arrive, requests, part="session", side="replica", calls=BATCH)
    assert len(received) == BATCH


@pytest.mark.parametrize("size", PAYLOADS)
def test_replies_queued_and_taken(cost: Any, size: int) -> None:
    pair = Pair(b"x" * size)

    def received() -> tuple[Any]:
        return (pair.arrive(pair.request()),)

    assert cost.of_prepared(pair.reply, received, part="session", side="replica", calls=BATCH)


@pytest.mark.parametrize("size", PAYLOADS)
def test_replies_received(cost: Any, size: int) -> None:
    pair = Pair(b"x" * size)

    def replies() -> tuple[list[bytes]]:
        return (pair.reply(pair.arrive(pair.request())),)

    done = cost.of_prepared(pair.finish, replies, part="session", side="caller", calls=BATCH)
    assert done == BATCH


@pytest.mark.parametrize("size", PAYLOADS)
def test_batch_through_both_machines(cost: Any, size: int) -> None:
    pair = Pair(b"x" * size)
    assert cost(pair.round_trip, part="session", side="both", calls=BATCH) == BATCH


def test_lone_call_through_both_machines(cost: Any) -> None:
    pair = Pair(b"x" * 100)
    assert cost(pair.round_trip, 1, part="session", side="both") == 1


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(100_000, id="100 kB"),
        pytest.param(1_000_000, id="1 MB"),
        pytest.param(10_000_000, id="10 MB"),
    ],
)
def test_large_call_through_both_machines(cost: Any, size: int) -> None:
    pair = Pair(b"x" * size)
    assert cost(pair.round_trip, 1, part="session", side="both") == 1
