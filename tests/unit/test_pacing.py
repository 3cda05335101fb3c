"""Work on a loop, a slice at a time, in order, whatever becomes of a piece of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import pytest

from serve_grpc.config import LOGGER_NAME
from serve_grpc.mailbox import mailbox_of
from serve_grpc.pacing import SLICE_S, Paced
from tests.ray.waiting import eventually_async


def steps(done: list[str], name: str, count: int, step_s: float = 0.0) -> Iterator[None]:
    for number in range(count):
        end_s = time.monotonic() + step_s
        while time.monotonic() < end_s:
            pass
        done.append(f"{name}{number}")
        yield


def test_what_is_short_is_done_at_once() -> None:
    async def main() -> None:
        done: list[str] = []
        paced = Paced(mailbox_of(asyncio.get_running_loop()), "test")
        paced.run(steps(done, "a", 3))
        assert done == ["a0", "a1", "a2"]

    asyncio.run(main())


def test_what_takes_long_leaves_the_loop_its_turns_and_keeps_its_order() -> None:
    async def main() -> None:
        done: list[str] = []
        paced = Paced(mailbox_of(asyncio.get_running_loop()), "test")
        paced.run(steps(done, "a", 10, step_s=SLICE_S * 0.6))
        assert 1 <= len(done) <= 2  # the second step is over the slice
        paced.run(steps(done, "b", 2))
        assert "b0" not in done
        turns = 0
        while "b1" not in done:
            await asyncio.sleep(0)
            turns += 1
        assert done == [*(f"a{n}" for n in range(10)), "b0", "b1"]
        assert turns >= 4

    asyncio.run(main())


def test_work_that_is_given_by_work_comes_after_it() -> None:
    async def main() -> None:
        done: list[str] = []
        paced = Paced(mailbox_of(asyncio.get_running_loop()), "test")

        def giving() -> Iterator[None]:
            paced.run(steps(done, "b", 1))
            done.append("a0")
            yield
            done.append("a1")

        paced.run(giving())
        assert done == ["a0", "a1", "b0"]

    asyncio.run(main())


def test_a_piece_that_fails_is_logged_and_the_others_are_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        done: list[str] = []
        paced = Paced(mailbox_of(asyncio.get_running_loop()), "follow the replicas")

        def failing() -> Iterator[None]:
            yield
            raise ValueError("no")

        with caplog.at_level(logging.ERROR, LOGGER_NAME):
            paced.run(failing())
            paced.run(steps(done, "b", 1))
        await eventually_async(lambda: done == ["b0"])
        (record,) = caplog.records
        assert record.getMessage() == "could not go on to follow the replicas"

    asyncio.run(main())
