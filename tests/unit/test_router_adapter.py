"""What Serve's own metrics of a handle are told, with Serve's real metrics manager."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from bench.stand_ins.serve import cancel_tasks, new_router, running
from serve_grpc._serve.replica_facts import ENDPOINT_KEY, Endpoint, ReplicaNews
from serve_grpc.routing.peer import ReplicaFacts


class Gauge:
    """Keeps what it is set to."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def set(self, value: int) -> None:
        self.values.append(value)


def test_running_calls_are_told_at_once_where_serve_caches_nothing() -> None:
    """RAY_SERVE_METRICS_EXPORT_INTERVAL_MS=0."""

    async def main() -> list[int]:
        adapter, manager = new_router()
        adapter.subscribe(lambda _: None)
        infos = running(2, max_ongoing_requests=5)
        manager._update_running_replicas(infos)
        manager._cached_metrics_enabled = False
        gauge = manager.num_running_requests_gauge = Gauge()
        for info in (infos[0], infos[1], infos[1]):
            adapter.on_sent(info.replica_id.unique_id)
        adapter._flush()
        adapter.on_finished(infos[1].replica_id.unique_id)
        adapter._flush()
        assert (adapter.calls, adapter.sent) == (0, 3)
        await cancel_tasks()
        return gauge.values

    assert asyncio.run(main()) == [3, 2]


def facts_of(endpoint: object) -> ReplicaFacts:
    """As callers take them from what a replica published."""

    async def main() -> ReplicaFacts:
        adapter, manager = new_router()
        seen: list[ReplicaNews] = []
        adapter.subscribe(seen.append)
        (info,) = running(1, max_ongoing_requests=5)
        manager._update_running_replicas(
            [dataclasses.replace(info, replica_metadata={ENDPOINT_KEY: endpoint})]
        )
        await cancel_tasks()
        ((facts,),) = [news.changed for news in seen if news.changed]
        return facts

    return asyncio.run(main())


def test_what_a_replica_publishes_is_what_its_callers_know() -> None:
    published = Endpoint("10.0.0.1:7000", "actor", frozenset({"msgpack"}), "/tmp/socket")
    facts = facts_of(published.as_metadata()[ENDPOINT_KEY])
    assert (facts.address, facts.actor_id) == ("10.0.0.1:7000", "actor")
    assert (facts.serializers, facts.local_path) == (frozenset({"msgpack"}), "/tmp/socket")


def test_a_replica_without_a_local_lane_publishes_no_path() -> None:
    entry = Endpoint("10.0.0.1:7000", "actor").as_metadata()[ENDPOINT_KEY]
    assert entry == {"address": "10.0.0.1:7000", "actor_id": "actor", "inputs": True}
    assert facts_of(entry).local_path == ""
    assert facts_of(entry).takes_inputs
    assert not facts_of({"address": "10.0.0.1:7000", "actor_id": "actor"}).takes_inputs


@pytest.mark.parametrize(
    "path",
    [
        None,
        7,
        b"/tmp/socket",
        ["/tmp/socket"],
        "",
        "socket",
        "./socket",
        "\0abstract",
        "/tmp/so\0cket",
        "/tmp/\ud800",
        "/" + "x" * 107,
        "/" + "ö" * 54,
    ],
)
def test_what_can_be_no_path_of_a_socket_is_ignored_and_the_rest_holds(path: object) -> None:
    facts = facts_of({"address": "10.0.0.1:7000", "actor_id": "actor", "local_path": path})
    assert facts.local_path == ""
    assert (facts.address, facts.actor_id) == ("10.0.0.1:7000", "actor")


@pytest.mark.parametrize("path", ["/" + "x" * 106, "/tmp/\udcff"])
def test_a_path_that_the_kernel_takes_is_taken(path: str) -> None:
    assert facts_of({"address": "10.0.0.1:7000", "local_path": path}).local_path == path
