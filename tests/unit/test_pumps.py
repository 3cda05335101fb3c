"""Both pumps over a link in memory: what they move, how they end, and what each side is told."""

from __future__ import annotations

import asyncio

import pytest

from serve_grpc._generated.replica_pb2 import ReplicaBatch
from serve_grpc.carriers import replica_pump
from serve_grpc.carriers.link import Cause, Link, LinkLost
from serve_grpc.carriers.loopback import pair
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.config import Settings
from serve_grpc.entrance import unproven as unproven_module
from serve_grpc.protocol.caller import HandshakeRefused
from serve_grpc.protocol.handshake import SessionState
from tests.behaviour.serving import Echo
from tests.ray.waiting import eventually_async
from tests.unit.pump_ends import HOLD, Caller, Replica, run
from tests.unit.sessions import fields, new_caller, new_replica

# ------------------------------------------------------------ both


def test_calls_go_and_answers_come_and_both_are_counted() -> None:
    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        for number in range(200):
            caller.ask(f"{number}", b"%d" % number)
        await eventually_async(lambda: len(caller.answers) == 200)
        assert caller.answers == {f"{number}": b"%d" % number for number in range(200)}
        ours, theirs = caller.counters, replica.streams[0].counters
        assert (ours.messages_sent, ours.bytes_sent) == (
            theirs.messages_received,
            theirs.bytes_received,
        )
        assert (theirs.messages_sent, theirs.bytes_sent) == (
            ours.messages_received,
            ours.bytes_received,
        )
        assert theirs.frames_received == 200
        caller.pump.cancel()
        await caller.end()

    run(main())


def test_a_call_without_company_is_handed_over_at_once() -> None:
    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        before = caller.counters.messages_sent
        caller.session.request("call", fields(b"alone"))
        caller.pump.kick(at_once=True)
        assert caller.counters.messages_sent == before + 1  # and no turn of the loop was taken
        await eventually_async(lambda: "call" in caller.answers)
        caller.pump.cancel()
        await caller.end()

    run(main())


# ------------------------------------------------------------ how the caller's ends


def test_a_replica_that_closes_the_link_ends_the_session() -> None:
    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        await replica.links[0].close()
        assert await caller.end() == "the replica closed the session"

    run(main())


@pytest.mark.parametrize("how", ["abort", "cut"])
def test_a_lost_link_ends_both_sides_with_its_reason(how: str) -> None:
    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        caller.ask("held", envelope=HOLD)
        await eventually_async(lambda: replica.echo.held)
        if how == "abort":
            await replica.links[0].abort(Cause.LIMIT, "no more")
        else:
            replica.links[0].cut("no more")
        assert await caller.end() == "no more"
        await eventually_async(lambda: replica.echo.closed == [[1]])

    run(main())


def test_a_caller_that_gives_the_session_up_is_told_its_own_reason() -> None:
    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        caller.ask("held", envelope=HOLD)
        await eventually_async(lambda: replica.echo.held)
        caller.pump.cancel("no answer within 10 s")
        assert await caller.end() == "no answer within 10 s"
        await eventually_async(lambda: replica.echo.closed == [[1]])
        caller.pump.kick()  # a late one does no harm

    run(main())


def test_what_the_owner_raises_ends_the_session_and_is_told() -> None:
    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        error = ValueError("no sense")

        def fail(_: bytes) -> None:
            raise error

        caller.on_message = fail
        caller.ask("call")
        assert await caller.end() is error
        await eventually_async(lambda: replica.links[0].is_closed)

    run(main())


@pytest.mark.parametrize("error", [LinkLost("nobody is there"), RuntimeError("no TLS files")])
def test_a_dial_that_fails_is_told(error: Exception) -> None:
    async def dial(address: str, settings: Settings) -> Link:
        raise error

    async def main() -> None:
        expected = error.reason if isinstance(error, LinkLost) else error
        assert await Caller(dial).end() == expected

    run(main())


def test_a_write_that_fails_ends_the_session() -> None:
    async def dial(address: str, settings: Settings) -> Link:
        near, _ = pair()

        async def write(message: bytes) -> None:
            raise OSError("no buffer")

        near.write = write
        return near

    async def main() -> None:
        assert await Caller(dial).end() == "OSError('no buffer')"

    run(main())


def test_the_end_of_all_tasks_is_told_as_that() -> None:
    async def main() -> Caller:
        return await Caller(Replica().dial).opened()

    caller = asyncio.run(main())  # which cancels what is left
    (reason,) = caller.closed
    assert isinstance(reason, asyncio.CancelledError)


def test_the_link_is_let_go_while_the_replica_reads_nothing() -> None:
    async def main() -> None:
        near, far = pair(window=1)

        async def dial(address: str, settings: Settings) -> Link:
            return near

        caller = Caller(dial)
        await asyncio.sleep(0)
        for number in range(5):
            caller.session.ping(number)
            caller.session.outbox.close_batch()
        caller.pump.kick()
        await eventually_async(lambda: caller.counters.messages_sent == 2)
        caller.pump.cancel("enough")
        assert await caller.end() == "enough"
        assert near.is_closed
        for _ in range(2):
            assert await far.read()
        with pytest.raises(LinkLost, match="enough"):
            await far.read()

    run(main())


# ------------------------------------------------------------ how the replica's ends


def test_a_caller_that_says_nothing_is_cut_off_and_told_why() -> None:
    async def main() -> None:
        replica = Replica(max_silence_s=0.1)
        caller = await Caller(replica.dial).opened()
        assert await caller.end() == "nothing was heard for 0.1 s"
        await eventually_async(lambda: replica.echo.closed == [[]])

    run(main())


def test_a_peer_that_does_not_prove_itself_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unproven_module, "HANDSHAKE_TIMEOUT_S", 0.1)

    async def main() -> None:
        link = await Replica().dial("", Settings())
        with pytest.raises(LinkLost, match="no proof of membership came in time"):
            await link.read()

    run(main())


def test_a_refusal_is_read_before_the_link_is_aborted() -> None:
    async def main() -> None:
        caller = Caller(Replica().dial, replica_id="another")
        reason = await caller.end()
        assert isinstance(reason, HandshakeRefused)
        link = await Replica().dial("", Settings())
        await link.write(new_caller(replica_id="another").outbox.take())
        message = await link.read()
        assert message is not None
        refusal = ReplicaBatch.FromString(message).refusal
        with pytest.raises(LinkLost) as raised:
            await link.read()
        assert raised.value.reason == refusal.message == "this is not replica 'another'"

    run(main())


def test_a_member_that_reads_no_replies_is_not_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_pump, "MAX_QUEUED_REPLY_BYTES", 1000)

    async def main() -> None:
        replica = Replica()
        caller = await Caller(replica.dial).opened()
        (link,), (stream,) = replica.links, replica.streams
        link.hold(True)
        for number in range(50):
            caller.ask(f"{number}", bytes(800))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert stream.session.outbox.queued_bytes > 1000
        assert stream.counters.frames_received < 50
        link.hold(False)
        await eventually_async(lambda: len(caller.answers) == 50)
        link.hold(True)
        for number in range(50):
            caller.ask(f"again {number}", bytes(800))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        link.cut("gone while it waited for room")
        await eventually_async(lambda: len(replica.echo.closed) == 1)

    run(main())


def test_a_writer_that_fails_ends_the_session(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        near, far = pair()
        take, echo = far.write, Echo()

        async def write(message: bytes) -> None:
            if caller.session.state is SessionState.OPEN:
                raise ArithmeticError("a bug")
            await take(message)

        async def dial(address: str, settings: Settings) -> Link:
            return near

        far.write = write
        caller = Caller(dial)
        serving = asyncio.ensure_future(ReplicaPump(new_replica(), far, echo).run())
        (await caller.opened()).ask("call")
        assert await caller.end() == "the replica closed the session"
        assert echo.closed == [[]]  # it was answered, as far as the session knows
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(main())
    assert "the writer of <ReplicaSession" in caplog.text
    assert "ArithmeticError: a bug" in caplog.text


def test_a_session_that_is_given_up_in_the_turn_in_which_it_was_dialled_ends_as_others_do() -> None:
    async def main() -> None:
        replica = Replica()
        caller = Caller(replica.dial)
        caller.pump.cancel("not needed any more")
        caller.pump.cancel("once more")
        assert caller.closed == []  # not within the call of its owner
        assert await caller.end() == "not needed any more"
        assert replica.links == []

    run(main())
