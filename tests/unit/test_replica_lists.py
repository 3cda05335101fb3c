"""What is told of one list after another, and what Serve goes on counting; with its real router."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from ray.serve._private.router import RouterMetricsManager

from bench.stand_ins.real_router import adapter_of, real_router
from bench.stand_ins.serve import running
from serve_grpc._serve.replica_facts import ReplicaNews
from serve_grpc._serve.replica_lists import lists_of
from tests.ray.waiting import eventually_async

INFOS = running(6, max_ongoing_requests=5)


def names(news: ReplicaNews) -> tuple[list[str], list[str]]:
    return [facts.replica_id for facts in news.changed], list(news.gone)


def told_of(*listed: Sequence[Any]) -> list[tuple[list[str], list[str]]]:
    """Names of what changed and of what is gone, of one list after the other."""

    async def main() -> list[tuple[list[str], list[str]]]:
        told: list[ReplicaNews] = []
        async with real_router() as router:
            adapter_of(router).subscribe(told.append)
            for infos in listed:
                router.list(infos)
        return [names(news) for news in told]

    return asyncio.run(main())


def test_news_are_what_changed() -> None:
    other = dataclasses.replace(INFOS[1], multiplexed_model_ids=["m"])
    assert told_of(INFOS[:2], INFOS[:3], [INFOS[0], other, INFOS[2]], [other], [], INFOS[:1]) == [
        (["replica-0", "replica-1"], []),
        (["replica-2"], []),
        (["replica-1"], []),
        ([], ["replica-0", "replica-2"]),
        ([], ["replica-1"]),
        (["replica-0"], []),
    ]


def test_a_list_like_the_one_before_is_told_as_such() -> None:
    """It may say that no replica will come any more."""
    assert told_of(INFOS[:1], INFOS[:1]) == [(["replica-0"], []), ([], [])]


def test_what_is_no_fact_of_ours_is_no_news() -> None:
    busy = dataclasses.replace(INFOS[0], routing_stats={"load": 7})
    assert told_of([INFOS[0]], [busy]) == [(["replica-0"], []), ([], [])]


def test_each_follower_of_a_router_is_told_and_a_late_one_of_all() -> None:
    async def main() -> None:
        first: list[ReplicaNews] = []
        second: list[ReplicaNews] = []
        async with real_router() as router:
            adapter_of(router).subscribe(first.append)
            router.list(INFOS[:2])
            adapter_of(router).subscribe(second.append)
            assert lists_of(router.asyncio_router) is lists_of(router.asyncio_router)
            router.list(INFOS[1:3])
        assert [names(news) for news in second] == [
            (["replica-0", "replica-1"], []),
            (["replica-2"], ["replica-0"]),
        ]
        assert names(first[-1]) == names(second[-1])

    asyncio.run(main())


def test_lists_that_come_while_news_are_made_ready_are_told_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_grpc.pacing.SLICE_S", 0.0)
    many = running(500, max_ongoing_requests=5)

    async def main() -> None:
        told: list[ReplicaNews] = []
        async with real_router() as router:
            adapter_of(router).subscribe(told.append)
            router.list(many)
            router.configure()
            router.list(many[1:])
            router.list(many[:-1])
            assert told == []
            await eventually_async(lambda: len(told) == 4)
        assert len(told[0].changed) == 500
        assert [names(news) for news in told[1:]] == [
            ([], []),
            ([], ["replica-0"]),
            (["replica-0"], ["replica-499"]),
        ]

    asyncio.run(main())


def test_counts_are_pruned_as_serve_prunes_them() -> None:
    """Each step on a router that we follow, and on the manager of one that we do not."""
    rounds: list[tuple[dict[int, int], list[int]]] = [
        ({0: 2, 1: 1, 2: 1, 3: 1}, [0, 1, 2, 3]),
        ({1: 0}, [0, 1, 2, 3]),  # runs nothing, is listed
        ({}, [0, 2]),  # 1 goes with its zero, 3 stays for its request
        ({3: 0, 2: 0}, [0]),
        ({4: 1}, [0, 3]),  # 3 comes back; 4 runs one and was in no list
        ({4: 0}, [0, 3]),
        ({0: 0, 3: 1}, []),
        ({3: 0}, []),
        ({}, [5]),
    ]

    async def main() -> None:
        async with real_router() as ours, real_router() as serves:
            adapter_of(ours).subscribe(lambda _: None)
            for counts, listed in rounds:
                found = []
                for router in (ours, serves):
                    manager: RouterMetricsManager = router.asyncio_router._metrics_manager
                    for number, count in counts.items():
                        manager.num_requests_sent_to_replicas[INFOS[number].replica_id] = count
                    router.list([INFOS[number] for number in listed])
                    found.append(dict(manager.num_requests_sent_to_replicas))
                assert found[0] == found[1], (counts, listed)

    asyncio.run(main())


def test_a_request_on_a_replica_that_left_is_counted_to_its_end() -> None:
    async def main() -> None:
        async with real_router() as router:
            adapter = adapter_of(router)
            adapter.subscribe(lambda _: None)
            manager = router.asyncio_router._metrics_manager
            router.list(INFOS[:1])
            adapter.on_sent("replica-0")
            router.list([])  # what is still to be told is told before
            assert manager.num_requests_sent_to_replicas == {INFOS[0].replica_id: 1}
            adapter.on_finished("replica-0")
            router.list([])
            assert manager.num_requests_sent_to_replicas == {}
            assert lists_of(router.asyncio_router).ids == {}

    asyncio.run(main())


def test_a_request_on_a_replica_that_comes_back_is_counted_once_up_and_once_down() -> None:
    """Sent after the list without it was taken, and before the router had heard of all of it."""

    async def main() -> None:
        async with real_router() as router:
            adapter = adapter_of(router)
            adapter.subscribe(lambda _: None)
            manager = router.asyncio_router._metrics_manager
            router.list(INFOS[:1])
            router.list([])
            for _ in range(2):
                adapter.on_sent("replica-0")
            router.list([])
            router.list(INFOS[:1])
            adapter.on_finished("replica-0")
            router.list(INFOS[:1])
            assert manager.num_requests_sent_to_replicas == {INFOS[0].replica_id: 1}
            adapter.on_finished("replica-0")
            router.list(INFOS[:1])
            assert manager.num_requests_sent_to_replicas == {INFOS[0].replica_id: 0}

    asyncio.run(main())
