"""The caller's generators as inputs: where they run, what they make, how they are closed."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest

from serve_grpc.caller import sources
from serve_grpc.caller.item_writer import Entry
from serve_grpc.caller.sources import ReferencedItems, ThreadSource
from serve_grpc.protocol.input_items import InputKind
from tests.ray.waiting import eventually_async
from tests.unit.noted_sources import NAME, TERMS, Noted, on_loop, values_of, writer
from tests.unit.sessions_loop import until


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
        source.start(made.extend, TERMS)
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
        on_loop(Noted(*range(90)).on_loop()).start(made.extend, TERMS)
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
        source.start(made.extend, TERMS._replace(items=2))
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
    source.start(made.extend, TERMS._replace(items=2))
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
        source.start(made.extend, TERMS)
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
    source.start(lambda entries: None, TERMS)
    until(lambda: steps.gi_frame is None)
    assert noted.ends == ["GeneratorExit"] * has_begun


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
            source.start(made.extend, TERMS._replace(items=2))
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
            source.start(made.extend, TERMS._replace(items=1))
            await eventually_async(lambda: len(watched) == 2)
            source.stop()
            await eventually_async(lambda: not any(ref() for ref in watched))
            assert not sources._running
        finally:
            gc.enable()

    asyncio.run(main())
