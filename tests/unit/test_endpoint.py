"""What a Serve replica does to offer our data plane, with Serve's replica played."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc.caller import dialling
from serve_grpc.caller.connection import Connection
from serve_grpc.carriers.local.paths import open_directory
from serve_grpc.config import LOGGER_NAME, settings
from serve_grpc.replica import endpoint
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import SECRET, Chooser, connect
from tests.ray.waiting import eventually_async


class Metrics:
    """In the place of `ReplicaMetrics`, which tells Ray."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, *_: object) -> Metrics:
        return self

    def start(self) -> None:
        self.seen.append("started")

    def stop(self) -> None:
        self.seen.append("stopped")


def run(
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[ReplicaAdapter, Metrics], Awaitable[None]],
    session_directory: str = "",
    **changes: Any,
) -> None:
    async def echo() -> str:
        return "echo"

    async def perform() -> None:
        """As Serve's own shutdown."""

    async def main() -> None:
        adapter = new_replica_adapter(echo, max_ongoing_requests=1)
        adapter._replica.perform_graceful_shutdown = perform
        metrics = Metrics()
        directory = session_directory or made
        monkeypatch.setattr(endpoint, "current_replica", lambda: adapter)
        monkeypatch.setattr(endpoint, "cluster_secrets", lambda: (SECRET,))
        monkeypatch.setattr(endpoint, "node_address", lambda: "127.0.0.1")
        monkeypatch.setattr(endpoint, "session_directory", lambda: directory)
        monkeypatch.setattr(endpoint, "ReplicaMetrics", metrics)
        monkeypatch.setattr(endpoint, "settings", dataclasses.replace(settings, **changes))
        try:
            await test(adapter, metrics)
        finally:
            await cancel_tasks()
            adapter._access_log.close()

    # Short, for pytest's own is too long for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="s") as made:
        asyncio.run(main())


def connected(metadata: dict[str, Any], chooser: Chooser, **facts: Any) -> Connection:
    """A caller at the address that the replica published."""
    (address,) = [v for v in _values(metadata) if isinstance(v, str) and v.startswith("127.0.0.1:")]
    connection = connect(int(address.rpartition(":")[2]), chooser)
    facts = {"replica_id": "replica-0", **facts}
    connection.peer.facts = dataclasses.replace(connection.peer.facts, **facts)
    connection.connect()
    return connection


def _values(metadata: Any) -> list[Any]:
    if isinstance(metadata, dict):
        return [value for inner in metadata.values() for value in _values(inner)]
    return [metadata]


@pytest.mark.parametrize("host", ["", "127.0.0.1", "0.0.0.0"])
def test_a_replica_listens_and_publishes_an_address_that_callers_reach(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async def test(adapter: ReplicaAdapter, metrics: Metrics) -> None:
        connection = connected(await endpoint.publish_endpoint(None), Chooser())
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        assert metrics.seen == ["started"]
        await adapter._replica.perform_graceful_shutdown()
        await eventually_async(lambda: connection.peer.state is PeerState.GONE)
        assert metrics.seen == ["started", "stopped"]
        await connection.aclose()

    run(monkeypatch, test, bind_host=host)


def test_a_process_that_allows_none_of_the_serializers_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(_: ReplicaAdapter, metrics: Metrics) -> None:
        with pytest.raises(ValueError, match="allows none of the deployment's serializers"):
            await endpoint.publish_endpoint(frozenset({"pickle"}))
        assert metrics.seen == []

    run(monkeypatch, test, serializers=frozenset({"msgpack"}))


# ------------------------------------------------------------ the local lane


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [r for r in caplog.records if r.name == LOGGER_NAME]
    return [r.getMessage() for r in records if r.levelno >= logging.WARNING]


def test_a_replica_has_a_socket_for_callers_on_its_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dialling, "node_id", lambda: "here")

    async def test(adapter: ReplicaAdapter, _: Metrics) -> None:
        metadata = await endpoint.publish_endpoint(None)
        path = metadata["serve_grpc"]["local_path"]
        near = connected(metadata, Chooser(), local_path=path, node_id="here")
        far = connected(metadata, Chooser(), local_path=path, node_id="there")
        for connection in (near, far):
            await eventually_async(lambda c=connection: c.peer.state is PeerState.READY)
        assert (near.peer.carrier, far.peer.carrier) == ("local", "grpc")
        await adapter._replica.perform_graceful_shutdown()
        # A controller that was restarted asks again.
        await adapter._replica.perform_graceful_shutdown()
        for connection in (near, far):
            await eventually_async(lambda c=connection: c.peer.state is PeerState.GONE)
            await connection.aclose()
        assert os.listdir(os.path.dirname(path)) == []

    run(monkeypatch, test, local=True)
    assert warnings(caplog) == []


def test_a_replica_removes_what_a_killed_one_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as session:
        left = Path(open_directory(session)) / "replica-0123456789ab.v1"
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(left))

        async def test(adapter: ReplicaAdapter, _: Metrics) -> None:
            assert left.exists()
            await endpoint.publish_endpoint(None)
            assert not left.exists()
            await adapter._replica.perform_graceful_shutdown()

        run(monkeypatch, test, session, local=True)


def test_without_the_lane_nothing_is_made_and_nothing_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as session:

        async def test(adapter: ReplicaAdapter, _: Metrics) -> None:
            metadata = await endpoint.publish_endpoint(None)
            assert set(metadata["serve_grpc"]) == {"address", "actor_id", "inputs"}
            await adapter._replica.perform_graceful_shutdown()

        run(monkeypatch, test, session, local=False)
        assert os.listdir(session) == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda session: os.chmod(open_directory(session), 0o755), "others may use"),
        (lambda session: None, "No such file"),
    ],
)
def test_a_replica_that_cannot_have_the_lane_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[str], None],
    reason: str,
) -> None:
    async def test(adapter: ReplicaAdapter, metrics: Metrics) -> None:
        metadata = await endpoint.publish_endpoint(None)
        assert set(metadata["serve_grpc"]) == {"address", "actor_id", "inputs"}
        connection = connected(metadata, Chooser())
        await eventually_async(lambda: connection.peer.state is PeerState.READY)
        await adapter._replica.perform_graceful_shutdown()
        assert metrics.seen == ["started", "stopped"]
        await connection.aclose()

    with tempfile.TemporaryDirectory(prefix="s") as session:
        spoil(session)
        session = session if reason == "others may use" else f"{session}/gone"
        run(monkeypatch, test, session, local=True)
    (warning,) = warnings(caplog)
    assert "has no local lane" in warning
    assert reason in warning
