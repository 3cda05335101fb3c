"""What becomes of the inputs of a call that ends, however it does, or never was."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import (
    Error,
    Reply,
)
from serve_grpc.caller import inputs as inputs_module
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.inputs import InputArgument, Inputs
from serve_grpc.caller.item_writer import ItemWriter
from serve_grpc.caller.outcomes import GivenUp, Result
from serve_grpc.caller.sources import LoopSource
from serve_grpc.errors import ServeGrpcError
from serve_grpc.mailbox import mailbox_of
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.serialization import get_serializer
from tests.ray.waiting import eventually_async
from tests.unit.input_scenes import Scene, Scripted
from tests.unit.sessions import fields


def test_a_replica_that_turns_away_what_it_has_begun_ends_the_call() -> None:
    async def main() -> None:
        scene = Scene()
        scene.go()
        scene.source.put(b"1")
        await scene.left()
        scene.credit(1, 1)
        scene.hear(rejected=[scene.ids["a"]], requests_read=1)
        assert type(scene.call.outcome) is GivenUp
        assert scene.call.outcome.may_have_executed
        assert scene.source.stops == 1

    asyncio.run(main())


def end_by(scene: Scene, how: str) -> None:
    if how == "result":
        scene.hear(scene.result("a"))
    elif how == "error":
        error = Error(code=Error.INTERNAL, message="no")
        scene.hear(Reply(id=scene.ids["a"], kind=Reply.ERROR, error=error))
    elif how == "cancel":
        scene.call.give_up()
    elif how == "deadline":
        scene.way.expire_after(0)
    elif how == "rejected":
        scene.hear(rejected=[scene.ids["a"]], requests_read=1)
    else:
        scene.connection._on_closed("lost")


HOW = ["result", "error", "cancel", "deadline", "rejected", "lost"]


@pytest.mark.parametrize("how", HOW)
def test_whatever_ends_a_call_stops_its_sources_and_keeps_nothing(how: str) -> None:
    async def main() -> None:
        scene = Scene(2)
        scene.go()
        scene.source.put(*[b"y"] * 9)
        await scene.left()
        end_by(scene, how)
        await eventually_async(lambda: scene.call.done)
        assert [source.stops for source in scene.sources] == [1, 1]
        assert scene.way.inputs is None
        for each in scene.inputs._inputs:
            assert (list(each.unsent), each.sent) == ([], [])
        scene.source.put(b"late")
        if scene.connection._session is not None:
            assert await scene.left() == []

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_that_is_never_sent_stops_its_sources(how: str) -> None:
    async def main() -> None:
        scene = Scene(2)
        end_by(scene, how)
        await eventually_async(lambda: scene.call.done)
        assert [source.stops for source in scene.sources] == [1, 1]

    asyncio.run(main())


def test_a_call_is_repeated_only_while_nothing_of_its_inputs_was_sent() -> None:
    async def main() -> None:
        scene = Scene()
        scene.way.is_idempotent = True
        assert scene.way.may_run_twice
        scene.go()
        assert scene.way.may_run_twice
        scene.source.end()
        await scene.left()
        assert not scene.way.may_run_twice

    asyncio.run(main())


def test_the_end_of_a_generators_loop_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "LOOK_S", 0.01)

    async def numbers() -> Any:
        yield 1

    async def new_source() -> LoopSource:
        writer = ItemWriter(get_serializer("pickle"), None, "numbers")
        return LoopSource(numbers(), writer, asyncio.get_running_loop())

    other = asyncio.new_event_loop()
    source = other.run_until_complete(new_source())
    other.close()

    async def main() -> None:
        scene = Scene()
        scene.inputs._inputs[0].source = source
        scene.go()
        left: list[Any] = []
        session = scene.connection._session
        assert session is not None
        while not left:
            await asyncio.sleep(0.01)
            left = await scene.left() if session.machine.outbox else []
        assert left == [(0, "ERROR", b"")]
        assert scene.inputs._inputs[0].is_over
        scene.hear(scene.result("a"))

    asyncio.run(main())


def test_inputs_of_a_call_that_never_was_are_stopped() -> None:
    async def main() -> None:
        source = Scripted()
        inputs = Inputs((InputPlace(0, ""),), [source], mailbox_of(asyncio.get_running_loop()))
        argument: Any = InputArgument(inputs, 0)
        del inputs, argument
        gc.collect()
        assert source.stops == 0  # a finalizer only posts
        await asyncio.sleep(0)
        assert source.stops == 1

    asyncio.run(main())


def test_a_try_of_a_call_sends_its_inputs_and_its_own_end_is_not_theirs() -> None:
    async def main() -> None:
        whole = Scene()
        request = fields(b"request", request_id="b", inputs=whole.inputs.places)
        for is_last in (False, True):
            call = whole._new_call(request, mailbox=whole._mailbox, response_loads=bytes)
            attempt = Delivery(call, whole.chooser)
            attempt.inputs = whole.inputs
            whole.inputs.belong_to(attempt)
            assert attempt.send(whole.connection)
            if not is_last:
                whole.source.put(b"1")
            whole.ids["b"] = attempt._call_id
            assert await whole.left() == [(0, "ITEM", b"1")]
            if not is_last:
                whole.hear(rejected=[whole.ids["b"]], requests_read=1)
                assert call.done
                assert whole.source.stops == 0
        whole.hear(whole.result("b"))
        assert whole.source.stops == 0
        whole.way.end(Result(b""))
        assert whole.source.stops == 1

    asyncio.run(main())


def test_an_item_that_we_fail_over_ends_its_call(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        scene = Scene()
        session = scene.connection._session
        assert session is not None
        session.machine.inputs.add = lambda *_: 1 / 0  # type: ignore[method-assign]
        scene.go()
        scene.source.put(b"1")
        await eventually_async(lambda: scene.call.done)
        with pytest.raises(ServeGrpcError, match="ZeroDivisionError"):
            scene.call.result()
        assert scene.source.stops == 1
        assert "could not handle an item" in caplog.text

    asyncio.run(main())
