"""What one message says of many calls reaches each of them, whatever happens to one."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from serve_grpc._generated.replica_pb2 import Drain, Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.outcomes import Raised
from serve_grpc.response import ByValueResponse, ByValueResponseGenerator
from tests.ray.waiting import eventually_async
from tests.unit.message_of_replies import Line

UNKNOWN_KIND = 44


class Session:
    """An object of the user's that cancels what it still waits for when it goes."""

    def __init__(self, call: Call) -> None:
        self.response: ByValueResponse[object] = ByValueResponse(call)

    def __del__(self) -> None:
        self.response.cancel()


def drop_in_a_cycle(thing: object) -> None:
    cycle: list[object] = [thing]
    cycle.append(cycle)


@pytest.mark.parametrize("kind", [ByValueResponseGenerator, Session])
def test_a_call_that_the_collector_ends_while_a_message_is_read_costs_no_other(
    kind: Callable[[Call], object],
) -> None:
    async def main() -> None:
        line = Line()
        for name in ("a", "c"):
            line.send(name)
        stream = line.send("b", stream=True)
        gc.disable()
        try:
            drop_in_a_cycle(kind(stream))
            line.chooser.collects.add(("on_answered", "a"))
            line.hear(line.result("a"), line.item("b"), line.result("c"))
        finally:
            gc.enable()
        assert line.connection._session is not None
        assert [line.calls[name].result() for name in ("a", "c")] == [b"a", b"c"]
        await eventually_async(lambda: stream.done)
        assert list(line.leave().cancels) == [line.ids["b"]]
        assert set(line.chooser.ended.values()) == {1}

    asyncio.run(main())


def test_a_reply_before_a_bad_frame_arrives_and_the_session_ends() -> None:
    async def main() -> None:
        line = Line()
        for name in "abc":
            line.send(name)
        bad = Reply(id=line.ids["b"], kind=UNKNOWN_KIND)
        line.hear(line.result("a"), bad, line.result("c"))
        assert line.connection._session is None
        assert line.calls["a"].result() == b"a"
        for name in "bc":
            with pytest.raises(ConnectionError, match="unknown kind"):
                line.calls[name].result()

    asyncio.run(main())


@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_a_call_that_fails_over_its_reply_costs_no_other(failing: str) -> None:
    async def main() -> None:
        line = Line()
        for name in "abc":
            line.send(name)
        line.chooser.fails.add(("on_answered", failing))
        line.hear(*(line.result(name) for name in "abc"))
        for name, call in line.calls.items():
            assert call.done
            if name == failing:
                with pytest.raises(Exception, match="on_answered fails"):
                    call.result()
            else:
                assert call.result() == name.encode()
        assert line.connection._session is not None

    asyncio.run(main())


def test_a_stream_that_fails_over_an_item_is_lost_alone() -> None:
    async def main() -> None:
        line = Line()
        stream, call = line.send("s", stream=True), line.send("a")
        line.chooser.fails.add(("add_item", "s"))
        line.leave()
        line.hear(line.item("s"), line.result("a"))
        assert call.result() == b"a"
        assert stream.done
        assert list(line.leave().cancels) == [line.ids["s"]]

    asyncio.run(main())


def test_an_event_of_a_call_that_has_ended_is_left_out() -> None:
    async def main() -> None:
        line = Line()
        gone, call = line.send("a"), line.send("b")
        line.delivery(gone).end(Raised(RuntimeError("given up")))
        line.hear(line.result("a"), line.result("b"))
        assert call.result() == b"b"
        assert line.connection._session is not None

    asyncio.run(main())


@pytest.mark.parametrize("how", ["rejected", "undelivered", "lost"])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_each_call_that_comes_back_hears_of_it(how: str, failing: str) -> None:
    async def main() -> None:
        line = Line()
        for name in "abc":
            line.send(name)
        line.chooser.fails.add(("takes_back" if how == "lost" else "on_rejected", failing))
        if how == "rejected":
            line.hear(rejected=line.ids.values())
        elif how == "undelivered":
            line.leave()
            line.hear(drain=Drain(requests_read=0))
        else:
            line.connection._on_closed("cut")
        assert all(call.done for call in line.calls.values())
        assert line.chooser.ended == {name: 1 for name in "abc" if name != failing}

    asyncio.run(main())


def test_every_user_hears_of_a_change_though_one_fails() -> None:
    async def main() -> None:
        line, other = Line(), Line()
        line.connection.users.add(other.chooser)
        line.chooser.fails.add(("on_change", ""))
        other.chooser.fails.add(("on_change", ""))
        call = line.send("a")
        line.hear(line.result("a"))
        assert call.result() == b"a"
        assert (line.chooser.changes, other.chooser.changes) == (1, 1)
        assert line.connection._session is not None

    asyncio.run(main())
