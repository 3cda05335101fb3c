"""Sessions that end on the lane before the replica lets the caller in: the next is gRPC's."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from types import SimpleNamespace

import pytest

from serve_grpc._generated.replica_pb2 import Refusal, ReplicaBatch
from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES, Link
from serve_grpc.carriers.local import serve as local_serve
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.protocol.keyring import key_id
from tests.behaviour.serving import REPLICA_ID, SECRET
from tests.ray.waiting import eventually_async
from tests.unit.lanes import Replica, answers, opened, run, said

pytestmark = pytest.mark.usefixtures("on_this_node")


def test_a_lane_that_lets_nobody_in_is_left_for_grpc(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the two sides do not agree who the other one is, only the replica's end may see it."""

    async def test(replica: Replica) -> None:
        monkeypatch.setattr(local_serve, "stranger", lambda sock: "of user 65534")
        replica.lane.start(path)
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "grpc"
        assert replica.counters.local_fallbacks == 1
        assert await answers(connection)
        await connection.aclose()

    with caplog.at_level(logging.DEBUG, LOGGER_NAME):
        run(path, test)
    assert len(said(caplog)) == 1


def test_after_a_refusal_the_next_attempt_is_grpcs_and_then_the_lanes_again(path: str) -> None:
    """Who refuses has proved nothing. If it was the replica, it says the same over gRPC."""

    async def test(replica: Replica) -> None:
        replica.lane.start(path)
        connection = replica.caller()
        connection.peer.facts = dataclasses.replace(connection.peer.facts, replica_id="another")
        carriers: list[str] = []
        serve_link = replica.server.host.serve

        async def note_and_serve(link: Link) -> None:
            carriers.append(link.carrier)
            await serve_link(link)

        replica.server.host.serve = note_and_serve  # type: ignore[method-assign]
        connection.connect()
        await eventually_async(lambda: connection.trouble.times >= 3)
        assert "WRONG_REPLICA" in connection.trouble.reason
        assert carriers[:3] == ["local", "grpc", "local"]
        assert replica.counters.local_fallbacks == carriers.count("local")
        await connection.aclose()

    run(path, test)


@pytest.mark.parametrize("says", [name for name, number in Refusal.Reason.items() if number])
def test_who_took_the_socket_and_refuses_keeps_nobody_from_the_replica(
    path: str, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    async def test(replica: Replica) -> None:
        async def refuse(link: Link) -> None:
            await link.read()
            refusal = ReplicaBatch(refusal=Refusal(reason=Refusal.Reason.Value(says)))
            await link.write(refusal.SerializeToString())
            await link.close()

        replica.lane = LocalServer(SimpleNamespace(serve=refuse), Settings())  # type: ignore[arg-type]
        replica.lane.start(path)
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "grpc"
        assert replica.counters.local_fallbacks == 1
        assert await answers(connection)
        await connection.aclose()

    with caplog.at_level(logging.DEBUG, LOGGER_NAME):
        run(path, test)
    assert len(said(caplog)) == 1


def test_a_caller_that_leaves_while_the_lane_is_opened_does_not_fall_back(path: str) -> None:
    async def test(replica: Replica) -> None:
        async def say_nothing(link: Link) -> None:
            await link.read()
            await asyncio.Event().wait()

        replica.server.host.serve = say_nothing  # type: ignore[method-assign]
        replica.lane.start(path)
        connection = replica.caller()
        connection.connect()
        await eventually_async(
            lambda: connection._session is not None and connection._session.carrier == "local"
        )
        await connection.aclose()
        assert replica.counters.local_fallbacks == 0

    run(path, test)


@pytest.mark.parametrize("claims_it", [True, False])
def test_who_took_the_socket_without_the_secret_keeps_nobody_from_the_replica(
    path: str, claims_it: bool
) -> None:
    async def test(replica: Replica) -> None:
        wrong = b"?" * 32
        secrets = ClusterSecrets(lambda: (wrong,), (wrong,))
        if claims_it:
            secrets.keyring._by_id = {key_id(SECRET): wrong}
        impostor = SessionHost(
            replica_id=REPLICA_ID,
            secrets=secrets,
            settings=Settings(),
            dispatcher=replica.server.host._dispatcher,
            largest_message=SESSION_MESSAGE_BYTES,
        )
        replica.lane = LocalServer(impostor, Settings())
        replica.lane.start(path)
        connection = await opened(replica.caller())
        assert connection.peer.carrier == "grpc"
        assert await answers(connection)
        await connection.aclose()

    run(path, test)
