"""A replica without a session: what the log and waiting calls say of it, and when it is over."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from serve_grpc.caller import connection as connection_module
from serve_grpc.caller import trouble as trouble_module
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import Chooser, connect, serve
from tests.ray.instance import free_port
from tests.ray.waiting import eventually_async


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble_module, "RECONNECT_S", (0.01, 0.02))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER_NAME]


@pytest.mark.parametrize("what", ["unreachable", "refused"])
def test_many_failures_are_one_warning_that_says_why(
    caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async def main() -> None:
        server, port, _ = await serve(secret=b"another" * 5)
        if what == "unreachable":
            await server.stop(0)
        connection = connect(port, Chooser())
        connection.connect()
        await eventually_async(lambda: connection.trouble.times > 8)
        assert f"127.0.0.1:{port}" in str(connection.trouble)
        expected = "UNAVAILABLE" if what == "unreachable" else "UNAUTHENTICATED"
        assert expected in connection.trouble.reason
        await connection.aclose()
        await server.stop(0)

    with caplog.at_level(logging.WARNING, LOGGER_NAME):
        asyncio.run(main())
    (warning,) = warnings(caplog)
    assert ("cannot reach replica" if what == "unreachable" else "refused the session") in warning


def test_a_replica_that_says_nothing_is_in_trouble_before_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "PREFERRED_WAIT_S", 0.1)
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.5)

    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            connection = connect(silent.getsockname()[1], Chooser())
            connection.connect()
            await eventually_async(lambda: connection.trouble.reason)
            assert connection.trouble.reason == "no answer within 0.1 s"
            await eventually_async(lambda: connection.trouble.times)
            assert connection.trouble.reason == "no answer within 0.5 s"
            await connection.aclose()

    asyncio.run(main())


def test_a_session_that_opens_ends_the_trouble() -> None:
    async def main() -> None:
        port = free_port()
        connection = connect(port, Chooser())
        connection.connect()
        await eventually_async(lambda: connection.trouble.times)
        server, _, _ = await serve(Settings(min_port=port, max_port=port))
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        assert (connection.trouble.times, connection.trouble.reason) == (0, "")
        await connection.aclose()
        await server.stop(0)

    asyncio.run(main())


def test_a_loop_that_ends_opens_no_session_again(caplog: pytest.LogCaptureFixture) -> None:
    """`asyncio.run` cancels all tasks, and then waits for the threads of its executor."""

    async def main() -> None:
        server, port, _ = await serve()
        connection = connect(port, Chooser())
        connection.connect()
        await eventually_async(lambda: connection.takes_calls)
        (session,) = (t for t in asyncio.all_tasks() if "session to" in t.get_name())
        session.cancel()
        await eventually_async(lambda: connection.is_down)
        assert connection._timer is None or connection._timer.cancelled()
        assert connection.trouble.times == 0
        await connection.aclose()
        await server.stop(0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert warnings(caplog) == []


def test_a_process_that_has_left_the_cluster_opens_no_session_and_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module.ray, "is_initialized", lambda: is_member)
    is_member = True

    async def main() -> None:
        nonlocal is_member
        server, port, _ = await serve()
        chooser = Chooser()
        connection = connect(port, chooser)
        connection.connect()
        await eventually_async(lambda: connection.takes_calls)
        is_member = False
        await server.stop(0)
        await eventually_async(lambda: connection.is_down)
        assert connection.peer.state is PeerState.LOST
        assert connection.trouble.times == 0
        assert connection._timer is None or connection._timer.cancelled()
        await connection.aclose()

    with caplog.at_level(logging.WARNING, LOGGER_NAME):
        asyncio.run(main())
    assert warnings(caplog) == []
