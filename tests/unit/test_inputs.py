"""The inputs of a call on their way to its replica: what is sent, kept, sent again and let go."""

from __future__ import annotations

import asyncio
import pickle
import random
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Error,
    Input,
    InputCredit,
    InputItem,
    Reply,
)
from serve_grpc.caller.inputs import InputArgument, inputs_among, taken_out
from serve_grpc.caller.item_writer import Entry, Terms
from serve_grpc.caller.lending import Loan
from serve_grpc.caller.outcomes import Result
from serve_grpc.errors import ServeGrpcError
from serve_grpc.payload import Segments, joined
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind
from tests.unit.input_scenes import CREDIT, Scene, item
from tests.unit.message_of_replies import Line
from tests.unit.sessions import LIMIT


def test_a_source_is_started_when_the_call_is_sent_and_not_before() -> None:
    async def main() -> None:
        scene = Scene(2)
        assert scene.source.terms == []
        scene.go()
        scene.connection._session.machine.outbox.take()  # type: ignore[union-attr]
        for source in scene.sources:
            assert source.terms == [Terms(*CREDIT, LIMIT, True)]
        scene.source.put(b"1")
        assert await scene.left() == [(0, "ITEM", b"1")]

    asyncio.run(main())


def test_the_request_says_where_its_inputs_stand() -> None:
    async def main() -> None:
        scene = Scene(2)
        scene.call.fields.inputs = (InputPlace(1, ""), InputPlace(0, "name"))
        scene.go()
        [request] = scene.leave().requests
        assert list(request.inputs) == [Input(position=1), Input(name="name")]

    asyncio.run(main())


def test_items_leave_within_the_credit_of_their_input() -> None:
    async def main() -> None:
        scene = Scene(2)
        scene.go()
        scene.source.put(b"1", b"2", b"3", b"4", b"5")
        scene.source.end()
        scene.sources[1].put(b"other")
        expected = [(0, "ITEM", b"1"), (0, "ITEM", b"2"), (0, "ITEM", b"3"), (1, "ITEM", b"other")]
        assert await scene.left() == expected
        assert scene.source.taken == [1] * 5
        scene.credit(1, 1)
        assert await scene.left() == [(0, "ITEM", b"4")]
        assert scene.source.granted == [(1, 1)]
        scene.credit(1, 1)
        assert await scene.left() == [(0, "ITEM", b"5"), (0, "END", b"")]
        counters = scene.connection._counters
        assert (counters.inputs_sent, counters.input_bytes_sent) == (6, 10)
        assert scene.source.stops == 0  # it has ended by itself
        scene.hear(scene.result("a"))
        assert scene.call.result() == b"a"

    asyncio.run(main())


def test_bytes_are_credit_and_a_larger_item_passes_alone() -> None:
    async def main() -> None:
        scene = Scene(credit=(100, 10))
        scene.go()
        scene.source.put(b"x" * 25, b"2")
        assert await scene.left() == [(0, "ITEM", b"x" * 25)]
        scene.credit(1, 15)
        assert await scene.left() == []
        scene.credit(0, 1)
        assert await scene.left() == [(0, "ITEM", b"2")]

    asyncio.run(main())


def test_an_error_needs_no_credit_and_nothing_follows_it() -> None:
    async def main() -> None:
        scene = Scene(credit=(1, 1))
        scene.go()
        scene.source.put(b"1")
        assert scene.source.sink is not None
        scene.source.sink((Entry(InputKind.ERROR, b"", Error(message="why")),))
        scene.source.put(b"late")
        scene.source.end()
        assert await scene.left() == [(0, "ITEM", b"1"), (0, "ERROR", b"")]

    asyncio.run(main())


def test_a_large_item_leaves_before_the_small_one_behind_it() -> None:
    async def main() -> None:
        scene = Scene(credit=(9, 10**6))
        scene.go()
        large = Segments([b"x" * 100_000])
        assert scene.source.sink is not None
        scene.source.sink((item(large),))
        scene.source.put(b"small")
        assert await scene.left() == [(0, "ITEM", b""), (0, "ITEM", b"small")]

    asyncio.run(main())


@pytest.mark.parametrize("second", [(3, 1000), (1, 1000), (5, 2000)])
def test_a_call_that_was_turned_away_takes_its_items_to_the_next_replica(
    second: tuple[int, int],
) -> None:
    async def main() -> None:
        first, other = Scene(), Line(input_credit=second)
        first.chooser.on_rejected = lambda *_: None  # type: ignore[method-assign]
        first.go()
        first.source.put(b"1", b"2", b"3", b"4")
        assert len(await first.left()) == 3
        first.hear(rejected=[first.ids["a"]], requests_read=1)
        assert first.way.inputs is first.inputs
        first.source.put(b"5")
        await asyncio.sleep(0)
        assert first.way.send(other.connection)
        first.source.end()
        await asyncio.sleep(0)
        session = other.connection._session
        assert session is not None
        batch = CallerBatch.FromString(session.machine.outbox.take())
        payloads = [i.payload for i in batch.input_items]
        expected = [b"1", b"2", b"3", b"4", b"5"][: second[0]]
        assert payloads == expected + [b""] * (second[0] == 5)
        assert first.source.terms == [Terms(*CREDIT, LIMIT, True)]
        assert first.source.granted == ([(2, 1000)] if second[0] == 5 else [])
        first.ids["a"] = first.way._call_id
        other.hear(Reply(id=first.ids["a"], kind=Reply.RESULT, payload=b"done"))
        assert first.call.result() == b"done"
        assert first.source.stops == 1

    asyncio.run(main())


def test_what_the_replica_has_read_is_not_kept() -> None:
    async def main() -> None:
        scene = Scene()
        scene.go()
        scene.source.put(b"1")
        await scene.left()
        assert [e.payload for e in scene.inputs._inputs[0].sent] == [b"1"]
        scene.credit(0, 0)
        scene.source.put(b"2")
        await scene.left()
        assert scene.inputs._inputs[0].sent == []
        assert scene.inputs.is_spent

    asyncio.run(main())


def test_an_item_of_the_result_says_that_the_request_was_read() -> None:
    async def main() -> None:
        scene = Scene()
        scene.go()
        scene.way.on_reply(Reply.ITEM, b"item", None)
        assert scene.inputs._is_read

    asyncio.run(main())


def test_an_input_that_the_handler_closed_sends_no_more() -> None:
    async def main() -> None:
        scene = Scene(2)
        scene.go()
        scene.source.put(b"1", b"2", b"3", b"4")
        await scene.left()
        scene.credit(0, 0, closed=True)
        assert scene.source.stops == 1
        scene.credit(1, 1)
        scene.source.put(b"5")
        scene.source.end()
        scene.sources[1].put(b"goes on")
        assert await scene.left() == [(1, "ITEM", b"goes on")]
        assert scene.sources[1].stops == 0

    asyncio.run(main())


def test_a_replica_that_takes_no_inputs_is_sent_none() -> None:
    async def main() -> None:
        scene = Scene(credit=None)
        assert not scene.way.send(scene.connection)
        with pytest.raises(ServeGrpcError, match="takes no streams as arguments"):
            scene.call.result()
        assert scene.source.stops == 1
        assert scene.leave().requests == []  # type: ignore[comparison-overlap]

    asyncio.run(main())


def test_the_loan_of_a_call_takes_on_what_items_name() -> None:
    class Ref:
        """Stands for an ObjectRef."""

    async def main() -> None:
        scene = Scene()
        settled: list[Any] = []
        scene.connection._lender.settle = settled.append  # type: ignore[method-assign]
        scene.go()
        assert scene.way.loan is None
        first, second = Ref(), Ref()
        assert scene.source.sink is not None
        scene.source.sink((item(Segments([b"1"], (first,))),))
        scene.source.sink((item(Segments([b"2"], (second,))),))
        await scene.left()
        assert type(scene.way.loan) is Loan
        scene.hear(scene.result("a"))
        [visit] = settled
        assert (visit.call_id, visit.refs, visit.questions) == (scene.ids["a"], (first, second), 1)

    asyncio.run(main())


def test_what_stands_for_inputs_is_taken_out_and_never_pickled() -> None:
    async def main() -> None:
        scene = Scene(2)
        first, second = (InputArgument(scene.inputs, n) for n in range(2))
        with pytest.raises(TypeError, match=r"serve_grpc\.deployment"):
            pickle.dumps(first)
        assert taken_out([1], {"a": 2}, "pickle") == ((1,), {"a": 2}, None)
        taken = taken_out([first, 1], {"a": second, "b": 2}, "pickle")
        assert taken == ((None, 1), {"b": 2}, scene.inputs)
        assert taken_out((first,), {}, "noop") == ((b"",), {}, scene.inputs)
        assert inputs_among((), {"a": second}) is scene.inputs
        scene.way.end(Result(b""))

    asyncio.run(main())


def test_payloads_in_pieces_are_sent_as_they_are() -> None:
    async def main() -> None:
        scene = Scene()
        scene.go()
        assert scene.source.sink is not None
        payload = Segments([b"ab", b"cd"])
        scene.source.sink((item(payload),))
        assert await scene.left() == [(0, "ITEM", joined(payload))]

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(40))
def test_in_whatever_order_things_happen_the_last_replica_gets_every_item_once(seed: int) -> None:
    chance = random.Random(seed)

    async def main() -> None:
        scene = Scene()
        scene.chooser.on_rejected = lambda *_: None  # type: ignore[method-assign]
        lines = [scene, *(Line(input_credit=(chance.randint(1, 5), 1000)) for _ in range(3))]
        made: list[bytes] = []
        got: list[bytes] = []
        room = 0
        has_ended = False

        async def deliver() -> None:
            """What leaves reaches the replica, which has given credit for it."""
            nonlocal room
            await asyncio.sleep(0)
            session = line.connection._session
            assert session is not None
            while session.machine.outbox:
                for each in CallerBatch.FromString(session.machine.outbox.take()).input_items:
                    got.append(each.payload if each.kind == InputItem.ITEM else b"end")
                    room -= each.kind == InputItem.ITEM
            assert room >= 0

        def make() -> None:
            """As a source, whose gate has as much credit as it was ever given."""
            credit = scene.source.terms[0].items + sum(items for items, _ in scene.source.granted)
            if len(made) < credit and len(made) < 12:
                made.append(b"%d" % len(made))
                scene.source.put(made[-1])

        while lines:  # every replica but the last turns the call away at some time
            line = lines.pop(0)
            assert scene.way.send(line.connection)
            session = line.connection._session
            assert session is not None
            credit = session.machine.inputs.credit
            assert credit is not None
            room = credit[0]
            got.clear()
            for _ in range(chance.randint(0, 8)):
                make()
                if chance.random() < 0.5:
                    await deliver()
            if lines:
                line.hear(rejected=[scene.way._call_id], requests_read=9)
        while len(made) < 12 or got[-1:] != [b"end"]:
            if len(made) == 12 and not has_ended:
                has_ended = True
                scene.source.end()
            make()
            await deliver()
            if chance.random() < 0.5 and room < 3:
                room += 1
                news = InputCredit(id=scene.way._call_id, number=0, items=1, bytes=1)
                line.hear(input_credits=[news])
        assert got == [*made, b"end"]
        line.hear(Reply(id=scene.way._call_id, kind=Reply.RESULT, payload=b"done"))
        assert scene.call.result() == b"done"
        assert scene.source.stops == 1

    asyncio.run(asyncio.wait_for(main(), 30))
