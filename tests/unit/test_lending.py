"""What callers lend and borrow, with an actor that is a `Desk` in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from serve_grpc._serve import lending as at_replica
from serve_grpc._serve.lending import KEPT_S, Desk, exchange
from serve_grpc.caller import lending
from serve_grpc.caller.lending import Borrowed, Lender, Loan
from serve_grpc.payload import with_refs
from serve_grpc.routing.peer import ReplicaFacts
from tests.ray.waiting import eventually_async
from tests.unit.sessions import new_caller, new_replica, shake_hands

FACTS = ReplicaFacts("replica", "", deployment="D", application="a")
EPOCH = 7


class Clock:
    """Timers that run when they are told to."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        self.timers.append((delay_s, callback, args))

    def advance(self) -> list[float]:
        due, self.timers = self.timers, []
        for _, callback, args in due:
            callback(*args)
        return [delay_s for delay_s, _, _ in due]


class Replica:
    """A desk with one session, and the calls of `exchange` that reached it.

    Attributes:
        raises: What the next calls end with instead.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock: Any = Clock()
        self.desk = Desk(FACTS.replica_id, self.clock)
        self.session, self.running = new_replica(), dict[int, str]()
        shake_hands(new_caller(), self.session)
        self.desk.open(self.session, self.running)
        self.asked: list[tuple[Any, ...]] = []
        self.raises: list[Exception] = []
        self.is_there = True
        monkeypatch.setattr(lending, "ASK_AGAIN_S", 0.0)
        monkeypatch.setattr(lending, "replica_actor", self.find)
        monkeypatch.setattr(lending, "ask", self.ask)

    def find(self, replica_id: str, deployment: str, application: str) -> Any:
        assert (replica_id, deployment, application) == ("replica", "D", "a")
        if not self.is_there:
            raise ValueError("no such actor")
        return self

    def ask(self, actor: Any, *args: Any) -> Awaitable[Any]:
        async def answer() -> Any:
            await asyncio.sleep(0)
            self.asked.append(args[1:])
            if self.raises:
                raise self.raises.pop(0)
            return exchange(actor, *args)

        return answer()

    @property
    def visits(self) -> list[Any]:
        """Of each question, the calls it was about."""
        return [visits for visits, _, _ in self.asked]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    return Replica(monkeypatch)


async def idle(lender: Lender) -> None:
    """Wait until nothing is left to ask."""
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if lender._exchanging is None and repr(lender) == (
            "<Lender 0 calls to settle, 0 replies to fetch>"
        ):
            await asyncio.sleep(0.01)  # a question that is to be asked again is due
            if lender._exchanging is None:
                return
    raise AssertionError(f"{lender!r} is still at work")


def lent(lender: Lender, *call_ids: int) -> Loan:
    loan = Loan(("ref",))
    for call_id in call_ids:
        loan.is_sent(lender, EPOCH, call_id)
    return loan


# ------------------------------------------------------------ what calls lend


def test_call_that_was_answered_is_settled_with_one_question(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        lent(lender, 1).settle(is_answered=True)
        await idle(lender)

    asyncio.run(main())
    assert replica.asked == [([None], [("ref",)], [])]


def test_call_that_was_given_up_may_still_be_on_its_way(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        lent(lender, 1).settle(is_answered=False)
        await idle(lender)

    asyncio.run(main())
    assert replica.visits == [[(EPOCH, 1)], [None]]


def test_call_that_still_runs_is_asked_for_until_it_does_not(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        replica.running[1] = "still"
        lent(lender, 1).settle(is_answered=False)
        await eventually_async(lambda: len(replica.asked) >= 3)
        del replica.running[1]
        await idle(lender)

    asyncio.run(main())
    assert len(replica.asked) > 4
    assert replica.visits[:3] == [[(EPOCH, 1)]] * 3
    assert replica.visits[-1] == [None]


def test_only_the_last_of_several_tries_was_answered(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        lent(lender, 1, 2).settle(is_answered=True)
        await idle(lender)

    asyncio.run(main())
    assert replica.visits == [[(EPOCH, 1), None], [None]]


def test_try_that_was_turned_away_is_not_asked_for(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        loan = lent(lender, 1)
        loan.came_back()
        loan.is_sent(lender, EPOCH, 2)
        loan.settle(is_answered=True)
        loan.settle(is_answered=False)  # it has nothing any more
        await idle(lender)

    asyncio.run(main())
    assert replica.visits == [[None]]


def test_what_comes_while_the_actor_is_asked_goes_together(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        lent(lender, 0).settle(is_answered=True)
        await eventually_async(lambda: replica.asked)
        for call_id in range(100):
            lent(lender, call_id).settle(is_answered=True)
        await idle(lender)

    asyncio.run(main())
    assert sum(map(len, replica.visits)) == 101
    assert len(replica.asked) <= 3


# ------------------------------------------------------------ what replies lend


def test_refs_reach_the_payload_that_names_them(replica: Replica) -> None:
    async def main() -> list[Any]:
        lender = Lender(FACTS)
        replica.session.replies.lent.update({1: ("one",), 2: ("two",), 3: ("late",)})
        payloads = [with_refs(b"", ()), with_refs(b"", ())]
        lender.borrow(EPOCH, [(2, payloads[0]), (1, payloads[1]), (3, None)])
        assert all(type(p.refs) is Borrowed and not p.refs.fetched.done() for p in payloads)
        await idle(lender)
        assert all(p.refs.fetched.done() for p in payloads)
        return [list(p.refs) for p in payloads]

    assert asyncio.run(main()) == [["two"], ["one"]]
    assert replica.session.replies.lent == {}
    assert replica.desk.hand_over(EPOCH, 1) == ()


def test_who_gives_up_waiting_for_refs_takes_them_from_nobody(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        replica.session.replies.lent.update({1: ("one",), 2: ("two",)})
        payloads = [with_refs(b"", ()), with_refs(b"", ())]
        lender.borrow(EPOCH, [(1, payloads[0]), (2, payloads[1])])
        waiting = asyncio.ensure_future(asyncio.wrap_future(payloads[0].refs.fetched))
        await asyncio.sleep(0)
        waiting.cancel()
        await idle(lender)
        assert [(p.refs, p.refs.fetched.done()) for p in payloads] == [
            (["one"], True),
            (["two"], True),
        ]

    asyncio.run(main())
    assert len(replica.asked) == 1


def test_refs_of_another_session_are_not_touched(replica: Replica) -> None:
    replica.session.replies.lent[1] = ("one",)
    assert replica.desk.hand_over(EPOCH + 1, 1) == ()
    assert replica.session.replies.lent == {1: ("one",)}


# ------------------------------------------------------------ replicas that do not answer


def work(lender: Lender) -> Any:
    payload = with_refs(b"", ())
    lender.borrow(EPOCH, [(1, payload)])
    lent(lender, 1).settle(is_answered=True)
    return payload


def test_replica_that_is_gone_ends_it_all(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        replica.is_there = False
        payload = work(lender)
        await idle(lender)
        assert payload.refs.fetched.done()
        replica.is_there = True
        replica.raises = [ActorDiedError()]
        payload = work(lender)
        await idle(lender)
        assert (payload.refs, payload.refs.fetched.done()) == ([], True)

    asyncio.run(main())
    assert len(replica.asked) == 1


def test_replica_that_is_away_for_a_moment_is_asked_again(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        replica.session.replies.lent[1] = ("one",)
        replica.raises = [ActorUnavailableError("away", None)] * 2
        payload = work(lender)
        await idle(lender)
        assert payload.refs == ["one"]

    asyncio.run(main())
    assert replica.asked == [([None], [("ref",)], [(EPOCH, 1)])] * 3


def test_replica_of_an_older_version_cannot_answer(replica: Replica) -> None:
    async def main() -> None:
        lender = Lender(FACTS)
        replica.raises = [RayTaskError("exchange", "no such module", ModuleNotFoundError())]
        payload = work(lender)
        await idle(lender)
        assert (payload.refs, payload.refs.fetched.done()) == ([], True)

    asyncio.run(main())
    assert len(replica.asked) == 1


def test_what_is_asked_of_a_replica_that_this_process_is_not_has_no_answer() -> None:
    assert exchange(None, "stranger", [(1, 1), None], [(), ()], [(1, 1)]) == ([False] * 2, [()])


# ------------------------------------------------------------ the end of a session


def test_refs_wait_for_their_caller_for_a_while_after_the_session(replica: Replica) -> None:
    replica.session.replies.lent[1] = ("one",)
    replica.session.replies.lent[2] = ("two",)
    replica.desk.close(replica.session)
    assert replica.desk.hand_over(EPOCH, 1) == ("one",)
    assert replica.clock.advance() == [KEPT_S]
    assert replica.desk.hand_over(EPOCH, 2) == ()
    assert repr(replica.desk) == "<Desk 0 replies to fetch over 0 sessions>"
    assert replica.clock.advance() == []


def test_session_is_remembered_while_its_calls_run(replica: Replica) -> None:
    replica.running[1] = "in a thread"
    replica.desk.close(replica.session)
    replica.clock.advance()
    assert replica.desk.runs((EPOCH, 1))
    replica.running.clear()
    replica.clock.advance()
    assert not replica.desk.runs((EPOCH, 1))
    assert repr(replica.desk) == "<Desk 0 replies to fetch over 0 sessions>"


def test_refs_for_a_caller_that_cannot_fetch_them_stay(replica: Replica) -> None:
    old = new_replica(epoch=8)
    caller = new_caller()
    caller.outbox.batch.hello.ClearField("features")
    shake_hands(caller, old)
    old.replies.lent[1] = ("one",)
    replica.desk.open(old, ())
    replica.desk.close(old)
    replica.clock.advance()
    assert replica.desk._pinned == [{1: ("one",)}]


def test_a_desk_goes_with_its_replica() -> None:
    clock: Any = Clock()
    desk = Desk("short-lived", clock)
    assert at_replica._desks["short-lived"] is desk
    del desk
    assert "short-lived" not in at_replica._desks
