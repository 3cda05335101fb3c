"""Whose turn it is in a beat: who has calls always, of those that idle a few."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from serve_grpc.caller.connection import Connection
from serve_grpc.caller.heartbeats import LONGEST_IDLE_S, Heartbeats
from serve_grpc.caller.session import IDLE_PING_INTERVALS
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.routing.peer import Peer, ReplicaFacts

INTERVAL_S = 4.0
FEW = 5


def among(count: int, check: Callable[[Heartbeats, list[Connection]], None]) -> None:
    """Look at so many connections that are due now, at 100 s."""

    async def main() -> None:
        secrets = ClusterSecrets(lambda: (b"s",), (b"s",))
        connections = [
            Connection(Peer(ReplicaFacts(f"replica-{n}", "nowhere:1")), Settings(), secrets)
            for n in range(count)
        ]
        for connection in connections:
            connection.look_s = 100.0
        check(Heartbeats(INTERVAL_S), connections)

    asyncio.run(main())


def test_few_that_are_due_have_their_turn_at_once() -> None:
    def check(heartbeats: Heartbeats, connections: list[Connection]) -> None:
        assert heartbeats.due(connections, 100.0) == connections
        assert heartbeats.due(connections, 99.9) == []

    among(FEW, check)


def test_of_many_the_longest_due_come_first() -> None:
    def check(heartbeats: Heartbeats, connections: list[Connection]) -> None:
        for number, connection in enumerate(connections):
            connection.look_s = 100.0 - number
        assert list(heartbeats.due(connections, 100.0)) == connections[: -FEW - 1 : -1]

    among(100, check)


@pytest.mark.parametrize("how", ["has calls", "was asked"])
def test_who_has_calls_or_is_to_answer_takes_nobody_s_turn(how: str) -> None:
    def check(heartbeats: Heartbeats, connections: list[Connection]) -> None:
        pressing, idle = connections[:50], connections[50:]
        for connection in pressing:
            if how == "has calls":
                connection.peer.in_flight, connection.look_s = 1, 200.0
            else:
                connection.look_s = 0.0
        assert list(heartbeats.due(connections, 100.0)) == [*pressing, *idle[:FEW]]

    among(100, check)


def test_each_of_thousands_has_its_turn_in_time_and_no_more_often() -> None:
    looks: Counter[Connection] = Counter()
    count, hour_s = 3000, 3600.0

    def check(heartbeats: Heartbeats, connections: list[Connection]) -> None:
        last_s = dict.fromkeys(connections, 100.0)
        beats = int(hour_s / heartbeats.beat_s)
        for beat in range(beats):
            now_s = 100.0 + beat * heartbeats.beat_s
            for connection in heartbeats.due(connections, now_s):
                looks[connection] += 1
                assert now_s - last_s[connection] <= 1.1 * LONGEST_IDLE_S
                last_s[connection] = now_s
                connection.look_s = now_s + IDLE_PING_INTERVALS * INTERVAL_S
        assert looks.total() == beats * count * heartbeats.beat_s / LONGEST_IDLE_S
        assert max(looks.values()) - min(looks.values()) <= 1

    among(count, check)


def test_a_replica_without_a_session_has_no_turn() -> None:
    def check(heartbeats: Heartbeats, connections: list[Connection]) -> None:
        for connection in connections:
            connection.beat(100.0)
        assert heartbeats.due(connections, 1e9) == []

    among(3, check)
