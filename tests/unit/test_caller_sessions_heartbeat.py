"""When a session asks for a sign of life, and when a replica counts as mute."""

from __future__ import annotations

import asyncio
import time

from serve_grpc.caller.session import IDLE_PING_INTERVALS, SUSPECT_AFTER_INTERVALS
from serve_grpc.routing.peer import PeerState
from tests.unit.message_of_replies import Line

INTERVAL_S = 10.0


def heard_now(line: Line) -> float:
    """A line that has heard its replica a moment ago, at the time that is returned."""
    session = line.connection._session
    assert session is not None
    session._interval_s = INTERVAL_S
    line.hear()
    return session._received_s


def test_a_replica_is_asked_after_silence_and_suspected_after_more() -> None:
    async def main() -> None:
        line = Line()
        line.send("a")
        heard_s = heard_now(line)
        line.leave()
        line.connection.beat(heard_s + 0.9 * INTERVAL_S)
        session = line.connection._session
        assert session is not None
        assert not session.machine.outbox.queued_bytes
        asked_s = heard_s + INTERVAL_S
        line.connection.beat(asked_s)
        assert line.leave().ping == 1
        line.connection.beat(asked_s + 0.9 * SUSPECT_AFTER_INTERVALS * INTERVAL_S)
        assert line.connection.peer.state is PeerState.READY
        line.connection.beat(asked_s + SUSPECT_AFTER_INTERVALS * INTERVAL_S)
        assert line.connection.peer.state is PeerState.SUSPECT
        assert not line.connection.takes_calls
        assert line.connection.is_open  # for a call that the replica is to decide on
        line.hear()
        assert line.connection.peer.state is PeerState.READY

    asyncio.run(main())


def test_without_calls_a_replica_is_asked_less_often() -> None:
    async def main() -> None:
        line = Line()
        heard_s = heard_now(line)
        session = line.connection._session
        assert session is not None
        line.connection.beat(heard_s + (IDLE_PING_INTERVALS - 1) * INTERVAL_S)
        assert not session.machine.outbox.queued_bytes
        line.connection.beat(heard_s + IDLE_PING_INTERVALS * INTERVAL_S)
        assert line.leave().ping == 1

    asyncio.run(main())


def test_a_session_that_is_not_open_is_not_asked() -> None:
    async def main() -> None:
        line = Line()
        session = line.connection._session
        assert session is not None
        session.is_open = False
        assert not session.beat(time.monotonic() + 1e6, has_calls=True)
        assert not session.machine.outbox.queued_bytes

    asyncio.run(main())
