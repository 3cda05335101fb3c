"""The caller's generators as inputs: where they run, what they make, how they are closed."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import pickle
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller import sources
from serve_grpc.caller.item_writer import Entry, ItemWriter, Terms
from serve_grpc.caller.sources import LoopSource, ReferencedItems, ThreadSource
from serve_grpc.config import LOGGER_NAME
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.serialization import get_serializer
from tests.ray.waiting import eventually_async
from tests.unit.sessions_loop import until

PICKLE = get_serializer("pickle")
TERMS = Terms(100, 10_000, 1000, True)
NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


class Noted:
    """A generator of either kind, and what was seen of it.

    Attributes:
        steps: Items that it was asked for.
        ends: What was raised where it paused, or "end".
        where: Thread and context variable of each of its steps and of its end.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.steps = 0
        self.ends: list[str] = []
        self.where: set[tuple[int, str]] = set()
        self.step = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def _note(self) -> None:
        self.where.add((threading.get_ident(), NAME.get()))

    async def on_loop(self) -> AsyncGenerator[Any, None]:
        try:
            for value in self.values:
                self._note()
                self.steps += 1
                self.step.set()
                await self.may_go_on.wait()
                yield value
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        else:
            self.ends.append("end")
        finally:
            self._note()

    def in_thread(self) -> Generator[Any, None, None]:
        try:
            for value in self.values:
                self._note()
                self.steps += 1
                yield value
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        else:
            self.ends.append("end")
        finally:
            self._note()


def writer() -> ItemWriter:
    return ItemWriter(PICKLE, None, "numbers")


def on_loop(steps: Any) -> LoopSource:
    return LoopSource(steps, writer(), asyncio.get_running_loop())


def values_of(entries: list[Entry]) -> list[Any]:
    """Items, and the kind of whatever else there is."""
    return [
        PICKLE.load_item(e.payload) if e.kind is InputKind.ITEM else e.kind.name for e in entries
    ]


def error_of(entries: list[Entry]) -> Error:
    """The one that is the last entry."""
    assert entries[-1].kind is InputKind.ERROR
    assert entries[-1].error is not None
    assert [e.kind for e in entries].count(InputKind.ERROR) == 1
    return entries[-1].error


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_items_come_in_order_from_where_the_generator_belongs(kind: str) -> None:
    async def main() -> None:
        made: list[Entry] = []
        noted = Noted(*range(40))
        NAME.set("of remote()")
        source = (
            on_loop(noted.on_loop())
            if kind == "loop"
            else ThreadSource(noted.in_thread(), writer())
        )
        NAME.set("of later")
        source.start(made.append, TERMS)
        await eventually_async(lambda: made and made[-1].kind is InputKind.END)
        assert values_of(made) == [*range(40), "END"]
        [(thread, name)] = noted.where
        assert (thread == threading.get_ident()) is (kind == "loop")
        assert name == "of remote()"
        source.stop()
        await asyncio.sleep(0)
        assert noted.ends == ["end"]

    asyncio.run(main())


def test_a_generator_that_never_waits_lets_its_loop_have_a_turn() -> None:
    async def main() -> None:
        made: list[Entry] = []
        on_loop(Noted(*range(90)).on_loop()).start(made.append, TERMS)
        seen = set()
        while not made or made[-1].kind is not InputKind.END:
            seen.add(len(made))
            await asyncio.sleep(0)
        assert len(seen) > 90 / sources.ITEMS_PER_TURN

    asyncio.run(main())


def test_credit_pauses_an_async_generator_and_a_grant_lets_it_go_on() -> None:
    async def main() -> None:
        made: list[Entry] = []
        noted = Noted(*range(10))
        source = on_loop(noted.on_loop())
        source.start(made.append, TERMS._replace(items=2))
        await eventually_async(lambda: noted.steps == 3)
        await asyncio.sleep(0)
        assert (values_of(made), noted.steps) == ([0, 1], 3)
        source.grant(1, 0)
        await eventually_async(lambda: noted.steps == 4)
        assert values_of(made) == [0, 1, 2]
        source.stop()
        await eventually_async(lambda: noted.ends)
        assert noted.ends == ["GeneratorExit"]
        assert noted.where == {(threading.get_ident(), "nobody")}
        assert values_of(made) == [0, 1, 2]

    asyncio.run(main())


def test_credit_pauses_a_plain_generator_and_a_grant_lets_it_go_on() -> None:
    made: list[Entry] = []
    noted = Noted(*range(10))
    source = ThreadSource(noted.in_thread(), writer())
    source.start(made.append, TERMS._replace(items=2))
    until(lambda: noted.steps == 3)
    assert values_of(made) == [0, 1]
    source.taken_over(5)
    source.grant(1, 0)
    until(lambda: noted.steps == 4)
    assert values_of(made) == [0, 1, 2]
    source.stop()
    source.stop()
    until(lambda: noted.ends)
    assert noted.ends == ["GeneratorExit"]
    assert len(noted.where) == 1
    assert values_of(made) == [0, 1, 2]


def test_a_step_that_runs_is_not_disturbed_and_what_it_makes_is_dropped() -> None:
    async def main() -> None:
        made: list[Entry] = []
        noted = Noted(1, 2)
        noted.may_go_on.clear()
        source = on_loop(noted.on_loop())
        source.start(made.append, TERMS)
        await noted.step.wait()
        source.stop()
        await asyncio.sleep(0.05)  # time for what must not happen
        assert noted.ends == []
        gc.collect()  # nobody but the source's own task has it by now
        noted.may_go_on.set()
        await eventually_async(lambda: noted.ends)
        assert (noted.ends, made) == (["GeneratorExit"], [])

    asyncio.run(main())


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_async_generator_that_is_never_started_is_closed(has_begun: bool) -> None:
    async def main() -> None:
        noted = Noted(1, 2)
        steps: Any = noted.on_loop()
        if has_begun:  # the caller has taken something of it before
            assert await steps.__anext__() == 1
        source = on_loop(steps)
        source.stop()
        source.stop()
        await eventually_async(lambda: steps.ag_frame is None)
        with pytest.raises(StopAsyncIteration):
            await steps.__anext__()
        assert noted.ends == ["GeneratorExit"] * has_begun

    asyncio.run(main())


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_plain_generator_that_is_never_started_is_closed(has_begun: bool) -> None:
    noted = Noted(1, 2)
    steps: Any = noted.in_thread()
    if has_begun:
        assert next(steps) == 1
    source = ThreadSource(steps, writer())
    source.stop()
    source.start(lambda entry: None, TERMS)
    until(lambda: steps.gi_frame is None)
    assert noted.ends == ["GeneratorExit"] * has_begun


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
    source.start(made.append, TERMS)
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
        source.start(made.append, TERMS._replace(may_pickle=False))
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
        on_loop(noted.on_loop()).start(made.append, TERMS._replace(items=items))
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
    source.start(made.append, TERMS)
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
            source.start(made.append, TERMS._replace(items=1))
            await eventually_async(made.copy)
            caplog.clear()
            source.stop()
            await eventually_async(lambda: "close the generator" in caplog.text)

    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        asyncio.run(main())


def test_ctrl_c_in_a_generator_is_the_programs() -> None:
    made: list[Entry] = []

    async def main() -> None:
        on_loop(failing_on_loop(KeyboardInterrupt())).start(made.append, TERMS)
        await asyncio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert error_of(made).type_name == "builtins.KeyboardInterrupt"


class Referenced:
    """As a response generator of Serve's own."""

    def __init__(self, count: int) -> None:
        self.left = list(range(count))
        self.cancels = 0

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

    def cancel(self) -> None:
        self.cancels += 1


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize("is_started", [False, True])
def test_a_response_of_serves_is_cancelled_when_no_more_is_wanted(
    kind: str, is_started: bool
) -> None:
    async def main() -> None:
        made: list[Entry] = []
        response = Referenced(5)
        items = ReferencedItems(response)
        source = on_loop(items) if kind == "loop" else ThreadSource(items, writer())
        if is_started:
            source.start(made.append, TERMS._replace(items=2))
            await eventually_async(lambda: len(made) == 2)
        source.stop()
        await eventually_async(lambda: response.cancels)
        assert response.cancels == 1
        assert values_of(made) == [0, 1] * is_started

    asyncio.run(main())


def new_loop_source(steps: Any) -> Any:
    return on_loop(steps)


@pytest.mark.parametrize("make", [new_loop_source, lambda s: ThreadSource(s, writer())])
def test_nothing_is_kept_of_a_generator_that_is_over(make: Callable[[Any], Any]) -> None:
    class Item:
        """Can be watched."""

        def __reduce__(self) -> Any:
            return int, ()

    watched: list[weakref.ref[Item]] = []

    def item() -> Item:
        new = Item()
        watched.append(weakref.ref(new))
        return new

    async def loop_steps() -> AsyncGenerator[Any, None]:
        yield item()
        yield item()

    def thread_steps() -> Generator[Any, None, None]:
        yield item()
        yield item()

    async def main() -> None:
        made: list[Entry] = []
        source = make(loop_steps() if make is new_loop_source else thread_steps())
        gc.disable()
        try:
            source.start(made.append, TERMS._replace(items=1))
            await eventually_async(lambda: len(watched) == 2)
            source.stop()
            await eventually_async(lambda: not any(ref() for ref in watched))
            assert not sources._running
        finally:
            gc.enable()

    asyncio.run(main())
