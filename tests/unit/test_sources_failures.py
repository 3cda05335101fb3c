"""Generators that fail, and how: their input ends with it, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller import sources
from serve_grpc.caller.item_writer import Entry
from serve_grpc.caller.sources import LoopSource, ThreadSource
from serve_grpc.config import LOGGER_NAME
from serve_grpc.protocol.input_items import InputKind
from tests.ray.waiting import eventually_async
from tests.unit.noted_sources import TERMS, Noted, error_of, on_loop, writer


class Odd(Exception):
    """Of the user's."""


async def failing_on_loop(error: BaseException) -> AsyncGenerator[Any, None]:
    yield 1
    raise error


def failing_in_thread(error: BaseException) -> Generator[Any, None, None]:
    yield 1
    raise error


async def made_by(kind: str, loop_steps: Any, thread_steps: Any) -> list[Entry]:
    made: list[Entry] = []
    source = on_loop(loop_steps) if kind == "loop" else ThreadSource(thread_steps, writer())
    source.start(made.extend, TERMS)
    await eventually_async(lambda: made and made[-1].kind is not InputKind.ITEM)
    return made


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_what_a_generator_raises_ends_its_input(kind: str) -> None:
    async def main() -> None:
        error = Odd("so it is")
        made = await made_by(kind, failing_on_loop(error), failing_in_thread(error))
        told = error_of(made)
        assert (len(made), told.code) == (2, Error.USER_EXCEPTION)
        assert repr(pickle.loads(told.pickled)) == "Odd('so it is')"
        assert "failing_" in told.traceback
        assert told.function_name == "numbers"

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()], ids=repr)
def test_a_generator_that_would_end_its_loop_ends_its_input(kind: str, error: Any) -> None:
    async def main() -> None:
        made = await made_by(kind, failing_on_loop(error), failing_in_thread(error))
        told = error_of(made)
        assert (told.code, told.pickled) == (Error.USER_EXCEPTION, b"")
        assert told.type_name == f"builtins.{type(error).__name__}"

    asyncio.run(main())


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit

    @property
    def cause(self) -> Any:
        raise SystemExit


def test_an_exception_that_cannot_be_shown_ends_its_input() -> None:
    async def main() -> None:
        made = await made_by("loop", failing_on_loop(Unspeakable()), None)
        assert "Unspeakable" in error_of(made).type_name

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize(
    ("item", "code"),
    [(threading.Lock(), Error.SERIALIZATION), (b"x" * 2000, Error.MESSAGE_TOO_LARGE)],
)
def test_an_item_that_cannot_travel_ends_its_input(kind: str, item: Any, code: Any) -> None:
    async def main() -> None:
        noted = Noted(1, item, 3)
        made = await made_by(kind, noted.on_loop(), noted.in_thread())
        told = error_of(made)
        assert (len(made), told.code, told.direction) == (2, code, "request")
        await eventually_async(lambda: noted.ends)
        assert noted.ends == ["GeneratorExit"]

    asyncio.run(main())


def test_without_pickles_an_exception_travels_as_text() -> None:
    async def main() -> None:
        made: list[Entry] = []
        source = on_loop(failing_on_loop(Odd("so it is")))
        source.start(made.extend, TERMS._replace(may_pickle=False))
        await eventually_async(lambda: len(made) == 2)
        told = error_of(made)
        assert (told.pickled, told.message) == (b"", "so it is")

    asyncio.run(main())


@pytest.mark.parametrize("items", [1, 100])
def test_a_loop_that_ends_under_a_generator_ends_its_input(items: int) -> None:
    made: list[Entry] = []
    noted = Noted(1, 2)

    async def main() -> None:
        if items > 1:
            noted.may_go_on.clear()
        on_loop(noted.on_loop()).start(made.extend, TERMS._replace(items=items))
        await eventually_async(lambda: noted.steps == (2 if items == 1 else 1))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert error_of(made).message == "the caller's generator was cancelled"
    assert noted.ends == ["GeneratorExit" if items == 1 else "CancelledError"]
    assert not sources._running


def test_the_end_of_a_loop_that_ran_nothing_more_is_seen() -> None:
    loop = asyncio.new_event_loop()
    made: list[Entry] = []

    async def begin() -> LoopSource:
        return on_loop(Noted(1).on_loop())

    source = loop.run_until_complete(begin())
    assert not source.is_lost
    loop.close()
    assert source.is_lost
    source.start(made.extend, TERMS)
    source.grant(1, 1)
    source.stop()
    assert made == []


def test_a_generator_that_fails_to_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> AsyncGenerator[Any, None]:
        try:
            yield 1
            yield 2
        finally:
            raise SystemExit("of the user's")

    def stubborn_thread() -> Generator[Any, None, None]:
        try:
            yield 1
            yield 2
        finally:
            raise SystemExit("of the user's")

    async def main() -> None:
        for source in (on_loop(stubborn()), ThreadSource(stubborn_thread(), writer())):
            made: list[Entry] = []
            source.start(made.extend, TERMS._replace(items=1))
            await eventually_async(made.copy)
            caplog.clear()
            source.stop()
            await eventually_async(lambda: "close the generator" in caplog.text)

    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        asyncio.run(main())


def test_ctrl_c_in_a_generator_is_the_programs() -> None:
    made: list[Entry] = []

    async def main() -> None:
        on_loop(failing_on_loop(KeyboardInterrupt())).start(made.extend, TERMS)
        await asyncio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert error_of(made).type_name == "builtins.KeyboardInterrupt"
