"""The inputs of a call on their way to its replica: what is sent, kept, sent again and let go."""

from __future__ import annotations

import asyncio
import gc
import pickle
import random
from collections.abc import Callable
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
from serve_grpc.caller import inputs as inputs_module
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.inputs import InputArgument, Inputs, inputs_among, taken_out
from serve_grpc.caller.item_writer import END, Entry, ItemWriter, Terms
from serve_grpc.caller.lending import Loan
from serve_grpc.caller.outcomes import GivenUp, Result
from serve_grpc.caller.sources import LoopSource
from serve_grpc.errors import ServeGrpcError
from serve_grpc.mailbox import mailbox_of
from serve_grpc.payload import Segments, joined
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.serialization import get_serializer
from tests.ray.waiting import eventually_async
from tests.unit.message_of_replies import Line
from tests.unit.sessions import LIMIT, fields

CREDIT = (3, 1000)


def item(payload: Any) -> Entry:
    return Entry(InputKind.ITEM, payload, None)


class Scripted:
    """A source whose items the test makes."""

    is_lost = False

    def __init__(self) -> None:
        self.sink: Callable[[Entry], None] | None = None
        self.terms: list[Terms] = []
        self.granted: list[tuple[int, int]] = []
        self.taken: list[int] = []
        self.stops = 0

    def start(self, sink: Callable[[Entry], None], terms: Terms) -> None:
        self.sink = sink
        self.terms.append(terms)

    def grant(self, items: int, bytes_: int) -> None:
        self.granted.append((items, bytes_))

    def taken_over(self, size: int) -> None:
        self.taken.append(size)

    def stop(self) -> None:
        self.stops += 1

    def put(self, *payloads: bytes) -> None:
        assert self.sink is not None
        for payload in payloads:
            self.sink(item(payload))

    def end(self) -> None:
        assert self.sink is not None
        self.sink(END)


class Scene(Line):
    """An open session, and one call with inputs, which is not sent yet."""

    def __init__(self, count: int = 1, credit: tuple[int, int] | None = CREDIT) -> None:
        super().__init__(input_credit=credit)
        self.sources = [Scripted() for _ in range(count)]
        self.source = self.sources[0]
        self.inputs = Inputs(
            tuple(InputPlace(n, "") for n in range(count)), self.sources, self._mailbox
        )
        request = fields(b"request", request_id="a", inputs=self.inputs.places)
        self.call = self._new_call(request, mailbox=self._mailbox, response_loads=bytes)
        self.way = Delivery(self.call, self.chooser)
        self.way.inputs = self.inputs
        self.inputs.belong_to(self.way)

    def go(self) -> None:
        """Send the call."""
        assert self.way.send(self.connection)
        self.ids["a"] = self.way._call_id

    async def left(self) -> list[tuple[int, str, bytes]]:
        """Number, kind and payload of what leaves of the inputs; of all messages till now."""
        await asyncio.sleep(0)  # for what was posted
        session = self.connection._session
        assert session is not None
        found = []
        while session.machine.outbox:
            batch = CallerBatch.FromString(session.machine.outbox.take())
            found += [(i.number, InputItem.Kind.Name(i.kind), i.payload) for i in batch.input_items]
        return found

    def credit(self, items: int, bytes_: int, number: int = 0, *, closed: bool = False) -> None:
        """The replica says something of an input."""
        news = InputCredit(
            id=self.ids["a"], number=number, items=items, bytes=bytes_, closed=closed
        )
        self.hear(input_credits=[news])


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
        scene.source.sink(Entry(InputKind.ERROR, b"", Error(message="why")))
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
        scene.source.sink(item(large))
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


def test_a_replica_that_takes_no_inputs_is_sent_none() -> None:
    async def main() -> None:
        scene = Scene(credit=None)
        assert not scene.way.send(scene.connection)
        with pytest.raises(ServeGrpcError, match="takes no streams as arguments"):
            scene.call.result()
        assert scene.source.stops == 1
        assert scene.leave().requests == []  # type: ignore[comparison-overlap]

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
        scene.source.sink(item(Segments([b"1"], (first,))))
        scene.source.sink(item(Segments([b"2"], (second,))))
        await scene.left()
        assert type(scene.way.loan) is Loan
        scene.hear(scene.result("a"))
        [visit] = settled
        assert (visit.call_id, visit.refs, visit.questions) == (scene.ids["a"], (first, second), 1)

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
        scene.go()
        session = scene.connection._session
        assert session is not None
        session.machine.send_input = lambda *_: 1 / 0  # type: ignore[method-assign]
        scene.source.put(b"1")
        await eventually_async(lambda: scene.call.done)
        with pytest.raises(ServeGrpcError, match="ZeroDivisionError"):
            scene.call.result()
        assert scene.source.stops == 1
        assert "could not handle an item" in caplog.text

    asyncio.run(main())


def test_payloads_in_pieces_are_sent_as_they_are() -> None:
    async def main() -> None:
        scene = Scene()
        scene.go()
        assert scene.source.sink is not None
        payload = Segments([b"ab", b"cd"])
        scene.source.sink(item(payload))
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
            credit = session.machine.input_credit
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
