"""Which carrier a session takes: the lane on one node, and gRPC in the same attempt without it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc.caller import dialling
from serve_grpc.caller import trouble as trouble_module
from serve_grpc.caller.dialling import Dialler, dialling_by
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.link import Cause, Link
from serve_grpc.carriers.local import dial as local_dial
from serve_grpc.carriers.local import framing
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.carriers.loopback import pair
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.routing.peer import Peer, ReplicaFacts
from tests.behaviour.serving import REPLICA_ID
from tests.ray.waiting import eventually_async
from tests.unit.lanes import HERE, Replica, answers, opened, run, said

pytestmark = pytest.mark.usefixtures("on_this_node")


# ------------------------------------------------------------ which carrier


def test_a_caller_on_the_replicas_node_takes_the_lane(path: str) -> None:
    async def test(replica: Replica) -> None:
        replica.lane.start(path)
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "local"
        assert replica.server.host.carriers() == {"local": 1}
        assert await answers(connection)
        await connection.aclose()
        assert connection.peer.carrier == ""
        assert replica.counters.local_fallbacks == 0

    run(path, test)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (Settings(local=False), {}),
        (Settings(), {"node_id": "another-node"}),
        (Settings(), {"node_id": ""}),
        (Settings(), {"local_path": ""}),
    ],
    ids=["switched_off", "other_node", "unknown_node", "no_socket"],
)
def test_other_callers_take_grpc_and_that_is_no_fallback(
    path: str, settings: Settings, facts: dict[str, Any]
) -> None:
    async def test(replica: Replica) -> None:
        replica.lane.start(path)
        connection = await opened(replica.caller(settings, **facts))
        assert connection.peer.carrier == "grpc"
        assert replica.server.host.carriers() == {"grpc": 1}
        assert await answers(connection)
        assert replica.counters.local_fallbacks == 0
        await connection.aclose()

    run(path, test)


def test_a_process_that_has_left_its_cluster_takes_grpc(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "node_id", lambda: "")

    async def test(replica: Replica) -> None:
        replica.lane.start(path)
        connection = await opened(replica.caller(node_id=""))
        # Both are unknown, and not the same because of that.
        assert connection.peer.carrier == "grpc"
        await connection.aclose()

    run(path, test)


# ------------------------------------------------------------ without the lane


def _nothing(path: str) -> None:
    """The replica's folder is not there, as in another container."""


def _killed(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()


def _file(path: str) -> None:
    with open(path, "w"):
        pass


@pytest.mark.parametrize("spoil", [_nothing, _killed, _file])
def test_without_the_lane_the_same_attempt_goes_on_with_grpc(
    path: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[str], None],
) -> None:
    # A second attempt would come too late for this test.
    monkeypatch.setattr(trouble_module, "RECONNECT_S", (60.0, 60.0))

    async def test(replica: Replica) -> None:
        spoil(path)
        since_s = time.monotonic()
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "grpc"
        assert time.monotonic() - since_s < 1
        assert await answers(connection)
        await connection.aclose()
        assert replica.counters.local_fallbacks == 1

    with caplog.at_level(logging.DEBUG, LOGGER_NAME):
        run(path, test)
    assert len(said(caplog)) == 1
    assert path in said(caplog)[0]
    ours = [r for r in caplog.records if r.name == LOGGER_NAME]
    assert [r for r in ours if r.levelno >= logging.WARNING] == []


def test_without_a_descriptor_for_the_socket_grpc_is_tried(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(replica: Replica) -> None:
        replica.lane.start(path)

        def no_more(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(local_dial.socket, "socket", no_more)
        link = await Dialler(replica.caller().peer, replica.counters).dial(
            f"127.0.0.1:{replica.port}", Settings()
        )
        monkeypatch.undo()
        assert link.carrier == "grpc"
        assert replica.counters.local_fallbacks == 1
        await link.abort(Cause.LEFT, "seen")
        await link.close()

    run(path, test)


def test_it_is_counted_each_time_and_said_once_a_replica(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        counters = Counters()
        peer = Peer(ReplicaFacts(REPLICA_ID, "127.0.0.1:1", node_id=HERE, local_path=path))
        dialler, another = Dialler(peer, counters), Dialler(peer, counters)
        for maker in (dialler, dialler, dialler, another):
            link = await maker.dial("127.0.0.1:1", Settings())
            assert link.carrier == "grpc"
            await link.abort(Cause.LEFT, "seen")
            await link.close()
        return counters.local_fallbacks

    with caplog.at_level(logging.DEBUG, LOGGER_NAME):
        assert asyncio.run(main()) == 4
    assert len(said(caplog)) == 2


def test_it_is_not_said_above_the_level_debug(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(replica: Replica) -> None:
        connection = await opened(replica.caller())
        await connection.aclose()

    with caplog.at_level(logging.INFO, LOGGER_NAME):
        run(path, test)
    assert said(caplog) == []


def test_a_lane_that_comes_back_is_taken_by_the_next_session(path: str) -> None:
    async def test(replica: Replica) -> None:
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "grpc"
        replica.lane.start(path)
        connection._session.cancel("for the test")  # type: ignore[union-attr]
        await eventually_async(lambda: connection.peer.carrier == "local")
        assert await answers(connection)
        await connection.aclose()

    run(path, test)


@pytest.mark.parametrize("speaks", [framing.VERSION + 1, 9999])
def test_a_replica_of_another_version_of_the_lane_is_reached_over_grpc_in_the_same_attempt(
    path: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    speaks: int,
) -> None:
    # A second attempt would come too late for this test.
    monkeypatch.setattr(trouble_module, "RECONNECT_S", (60.0, 60.0))
    path = path.replace(f".v{framing.VERSION}", f".v{speaks}")
    accepted: list[Link] = []

    async def test(replica: Replica) -> None:
        async def note(link: Link) -> None:
            accepted.append(link)

        replica.lane = LocalServer(SimpleNamespace(serve=note), Settings())  # type: ignore[arg-type]
        replica.lane.start(path)
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "grpc"
        assert replica.counters.local_fallbacks == 1
        assert await answers(connection)
        await connection.aclose()

    with caplog.at_level(logging.DEBUG, LOGGER_NAME):
        run(path, test)
    assert accepted == []
    (line,) = said(caplog)
    assert "another version" in line


# ------------------------------------------------------------ as told


def test_who_says_how_to_dial_is_obeyed_on_one_node_as_well(path: str) -> None:
    async def test(replica: Replica) -> None:
        replica.lane.start(path)
        near, far = pair()
        serving = asyncio.ensure_future(replica.server.host.serve(far))

        async def dial(address: str, settings: Settings) -> Link:
            return near

        with dialling_by(dial):
            connection = await opened(replica.caller())
        assert connection.peer.carrier == "memory"
        await connection.aclose()
        await serving

    run(path, test)
