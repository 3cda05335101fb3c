"""Serve's real router under a router of ours: which actors are looked up, when, and where."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource, RequestMetadata
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.request_router import RequestRouter

from bench.stand_ins.real_router import RealRouter, adapter_of, real_router
from bench.stand_ins.serve import running
from serve_grpc._serve import deferred_lists
from serve_grpc._serve.deferred_lists import DeferredLists
from serve_grpc._serve.replica_handles import LazyReplica
from serve_grpc._serve.request_routers import mark
from serve_grpc.config import LOGGER_NAME
from tests.ray.needs import needs_ray
from tests.ray.waiting import eventually_async

pytestmark = needs_ray("2.60", "lists that may be kept from Serve's request router")

SENT: Any = SimpleNamespace(call=SimpleNamespace(replica_id="replica-0"), request_id="request")


def metadata(*, by_reference: bool) -> Any:
    plain = RequestMetadata("request", "internal", _by_reference=by_reference)
    return plain if by_reference else mark(plain, deadline_s=None, is_idempotent=False)


class First(RequestRouter):
    """A request router of the deployment's own: whoever is first."""

    updates: ClassVar[list[int]] = []

    def update_replicas(self, replicas: list[Any]) -> None:
        self.updates.append(len(replicas))
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        return [candidate_replicas[:1]]


@contextlib.asynccontextmanager
async def followed(**config: Any) -> AsyncIterator[RealRouter]:
    """A router that one of ours follows, configured."""
    async with real_router() as router:
        adapter = adapter_of(router)
        adapter.subscribe(lambda _: None)
        adapter.carry_requests(lambda request: SENT)
        if config is not None:
            router.configure(**config)
        yield router


def lists(router: RealRouter) -> DeferredLists:
    deferred = router.asyncio_router._serve_grpc_lists._deferred
    assert isinstance(deferred, DeferredLists)
    return deferred


async def turns() -> None:
    """What was started on the loop has begun, and what that started."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_listed_first", [True, False])
def test_a_list_that_arrives_makes_serves_router_look_up_nobody(is_listed_first: bool) -> None:
    async def main() -> None:
        async with real_router() as router:
            adapter = adapter_of(router)
            adapter.subscribe(lambda _: None)
            infos = running(5, max_ongoing_requests=5)
            if is_listed_first:
                router.list(infos)
            router.configure()
            for count in (5, 4, 5):
                router.list(infos[:count])
            await turns()
            assert router.actors.looked_up == []
            assert router.request_router.curr_replicas == {}
            assert router.serve_router.running_replicas_populated()

    asyncio.run(main())


def test_serves_router_by_itself_looks_up_every_replica_of_the_list() -> None:
    """What this is all about; when it fails, Serve may have become lazy itself."""

    async def main() -> None:
        async with real_router() as router:
            router.list(running(5, max_ongoing_requests=5))
            router.configure()
            assert len(router.actors.looked_up) == 5
            await eventually_async(lambda: len(router.actors.asked) == 5)

    asyncio.run(main())


@pytest.mark.parametrize("is_configured", [True, False])
def test_a_list_that_came_before_us_is_known(is_configured: bool) -> None:
    async def main() -> None:
        async with real_router() as router:
            router.list(running(3, max_ongoing_requests=5))
            if is_configured:
                router.configure()
            told: list[Any] = []
            adapter_of(router).subscribe(told.append)
            assert {f.replica_id for news in told for f in news.changed} == {
                "replica-0",
                "replica-1",
                "replica-2",
            }
            # Those that Serve has looked up stay; of the others nobody is looked up now.
            eager = 3 if is_configured else 0
            if not is_configured:
                router.configure()
            assert len(router.actors.looked_up) == eager
            router.list(running(4, max_ongoing_requests=5))
            assert len(router.actors.looked_up) == eager
            router.take()
            kinds = [type(r) for r in router.request_router.curr_replicas.values()]
            assert kinds == [RunningReplica] * eager + [LazyReplica] * (4 - eager)

    asyncio.run(main())


def test_a_request_by_reference_looks_up_whom_it_considers_in_a_thread() -> None:
    async def main() -> None:
        async with followed() as router:
            router.list(running(50, max_ongoing_requests=5))
            with lists(router)._call():
                pending = PendingRequest([], {}, metadata(by_reference=True))
                replica = await router.request_router._choose_replica_for_request(pending)
            assert isinstance(replica, LazyReplica)
            assert replica.is_resolved
            assert 1 <= len(router.actors.looked_up) <= 2
            assert threading.get_ident() not in router.actors.threads
            assert set(router.actors.asked) == set(router.actors.looked_up)

    asyncio.run(main())


def test_many_requests_for_one_replica_look_it_up_once() -> None:
    async def main() -> None:
        async with followed() as router:
            router.list(running(1, max_ongoing_requests=500))
            router.take()
            (replica,) = router.request_router.curr_replicas.values()
            waiting = [asyncio.ensure_future(replica.resolve()) for _ in range(50)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.gather(*waiting[1:])
            assert router.actors.looked_up == ["actor-0"]

    asyncio.run(main())


def test_a_reservation_looks_up_the_one_that_is_chosen() -> None:
    async def main() -> None:
        async with followed() as router:
            router.list(running(20, max_ongoing_requests=5))
            chosen = router.asyncio_router.choose_replica(metadata(by_reference=False))
            async with chosen as selection:
                assert selection.replica_id.startswith("replica-")
                # While one is held, lists are taken as they come: `dispatch` looks into them.
                router.list([])
                assert router.request_router.curr_replicas == {}
            router.list(running(2, max_ongoing_requests=5))
            assert router.request_router.curr_replicas == {}
            assert len(router.actors.looked_up) <= 2
            assert threading.get_ident() not in router.actors.threads

    asyncio.run(main())


def test_a_request_that_waits_for_a_replica_gets_the_next_list() -> None:
    async def main() -> None:
        async with followed() as router:
            chosen = router.asyncio_router.choose_replica(metadata(by_reference=False))
            entering = asyncio.ensure_future(chosen.__aenter__())
            await turns()
            router.list(running(1, max_ongoing_requests=5))
            selection = await asyncio.wait_for(entering, 10)
            assert selection.replica_id == "replica-0"
            await chosen.__aexit__(None, None, None)

    asyncio.run(main())


def test_a_request_that_comes_before_the_configuration_gets_the_list() -> None:
    async def main() -> None:
        async with real_router() as router:
            adapter_of(router).subscribe(lambda _: None)
            router.list(running(1, max_ongoing_requests=5))
            chosen = router.asyncio_router.choose_replica(metadata(by_reference=False))
            entering = asyncio.ensure_future(chosen.__aenter__())
            await turns()
            router.configure()
            selection = await asyncio.wait_for(entering, 10)
            assert selection.replica_id == "replica-0"
            await chosen.__aexit__(None, None, None)

    asyncio.run(main())


@pytest.mark.parametrize("is_configured", [True, False])
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_request_that_was_begun_before_we_came_gets_the_list(
    is_configured: bool, is_listed: bool
) -> None:
    async def main() -> None:
        async with real_router() as router:
            infos = running(1, max_ongoing_requests=5)
            if is_listed:
                router.list(infos)
            if is_configured:
                router.configure()
            entering = []
            for begins_before in (True, False):
                chosen = router.asyncio_router.choose_replica(metadata(by_reference=False))
                if begins_before:
                    entering.append(asyncio.ensure_future(chosen.__aenter__()))
                    await turns()
                else:
                    late = chosen
            adapter_of(router).subscribe(lambda _: None)
            entering.append(asyncio.ensure_future(late.__aenter__()))
            await turns()
            if not is_configured:
                router.configure()
            if not is_listed:
                router.list(infos)
            for selection in await asyncio.wait_for(asyncio.gather(*entering), 10):
                assert selection.replica_id == "replica-0"

    asyncio.run(main())


def test_a_broadcast_that_was_begun_before_we_came_goes_to_all() -> None:
    async def main() -> None:
        async with real_router() as router:
            router.list(running(3, max_ongoing_requests=5))
            sent: list[str] = []

            def send(replica: Any, request: Any, with_rejection: bool) -> Any:
                sent.append(replica.replica_id.unique_id)
                return mock.Mock()

            begun = asyncio.ensure_future(
                router.asyncio_router.broadcast(metadata(by_reference=True))
            )
            await turns()
            adapter_of(router).subscribe(lambda _: None)
            router.configure()
            with mock.patch.object(RunningReplica, "try_send_request", send):
                await asyncio.wait_for(begun, 10)
            assert len(sent) == 3

    asyncio.run(main())


def test_a_broadcast_by_value_goes_to_all_and_looks_up_nobody() -> None:
    async def main() -> None:
        async with followed() as router:
            router.list(running(20, max_ongoing_requests=5))
            sent: list[str] = []

            def send(request: Any) -> Any:
                sent.append(request.replica_id)
                return mock.Mock()

            router.take()
            for replica in router.request_router.curr_replicas.values():
                replica._grpc_replica_wrapper._send = send
            results = await router.asyncio_router.broadcast(metadata(by_reference=False))
            assert len(results) == 20
            assert sorted(sent) == sorted(f"replica-{number}" for number in range(20))
            assert router.actors.looked_up == []

    asyncio.run(main())


def test_a_broadcast_by_reference_looks_up_all_in_threads_and_skips_who_died(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with followed() as router:
            router.list(running(5, max_ongoing_requests=5))
            router.actors.missing.add("actor-3")
            sent: list[str] = []

            def send(replica: Any, request: Any, with_rejection: bool) -> Any:
                sent.append(replica.replica_id.unique_id)
                return mock.Mock()

            with mock.patch.object(RunningReplica, "try_send_request", send):
                await router.asyncio_router.broadcast(metadata(by_reference=True))
            assert sent == ["replica-0", "replica-1", "replica-2", "replica-4"]
            assert len(router.actors.looked_up) == 5
            assert threading.get_ident() not in router.actors.threads

    with caplog.at_level(logging.WARNING, SERVE_LOGGER_NAME):
        asyncio.run(main())
    (warning,) = [r.getMessage() for r in caplog.records if "Failed to get handle" in r.message]
    assert "replica-3" in warning
    assert "Skipping this replica" in warning


def test_a_broadcast_while_no_replica_will_come_is_refused_at_once() -> None:
    async def main() -> None:
        async with real_router() as router:
            adapter_of(router).subscribe(lambda _: None)
            router.list([], is_available=False)
            with pytest.raises(DeploymentUnavailableError):
                await router.asyncio_router.broadcast(metadata(by_reference=True))

    asyncio.run(main())


def test_who_died_before_it_was_looked_up_is_left_out_until_the_next_list() -> None:
    async def main() -> None:
        async with followed() as router:
            infos = running(2, max_ongoing_requests=5)
            router.list(infos)
            router.actors.missing.add("actor-0")
            for _ in range(8):
                with lists(router)._call():
                    pending = PendingRequest([], {}, metadata(by_reference=True))
                    replica = await asyncio.wait_for(
                        router.request_router._choose_replica_for_request(pending), 10
                    )
                    assert replica.replica_id.unique_id == "replica-1"
            router.actors.missing.clear()
            router.list(infos)
            router.take()
            assert len(router.request_router.curr_replicas) == 2

    asyncio.run(main())


def test_an_actor_that_is_gone_is_an_error_that_serves_router_knows() -> None:
    async def main() -> None:
        async with followed() as router:
            router.list(running(1, max_ongoing_requests=5))
            router.take()
            router.actors.missing.add("actor-0")
            (replica,) = router.request_router.curr_replicas.values()
            with pytest.raises(ActorDiedError):
                await replica.get_queue_len(deadline_s=1.0)
            with pytest.raises(ActorDiedError):
                replica._actor_handle.handle_request.remote()
            with pytest.raises(ActorDiedError):
                await replica.release_slot("slot")

    asyncio.run(main())


def test_a_router_of_the_deployments_own_gets_each_list_and_looks_up_nobody() -> None:
    async def main() -> None:
        First.updates.clear()
        async with followed(
            request_router_config=RequestRouterConfig(request_router_class=First)
        ) as router:
            infos = running(5, max_ongoing_requests=5)
            for count in (5, 3, 4):
                router.list(infos[:count])
                assert len(router.request_router.curr_replicas) == count
            await turns()
            assert First.updates == [5, 3, 4]
            assert router.actors.looked_up == []
            pending = PendingRequest([], {}, metadata(by_reference=False))
            replica = await router.request_router._choose_replica_for_request(pending)
            assert replica.replica_id.unique_id == "replica-0"
            assert router.actors.looked_up == ["actor-0"]  # Serve asks it for its queue length

    asyncio.run(main())


def test_models_are_those_of_the_newest_list() -> None:
    async def main() -> None:
        async with followed() as router:
            (info,) = running(1, max_ongoing_requests=5)
            router.list([info])
            router.take()
            router.list([dataclasses.replace(info, multiplexed_model_ids=["m"])])
            router.take()
            (replica,) = router.request_router.curr_replicas.values()
            assert replica.multiplexed_model_ids == {"m"}
            assert router.request_router._multiplexed_model_id_to_replica_ids["m"]

    asyncio.run(main())


def test_the_autoscaler_is_told_of_the_newest_list_when_the_configuration_changes() -> None:
    async def main() -> None:
        async with followed() as router:
            manager = router.asyncio_router._metrics_manager
            router.list(running(3, max_ongoing_requests=5))
            manager.num_queued_requests = 1
            with mock.patch.object(
                manager, "should_send_scaled_to_zero_optimized_push", return_value=False
            ) as asked:
                router.configure(
                    autoscaling_config={"min_replicas": 0, "max_replicas": 5}, num_replicas=1
                )
            asked.assert_called_once_with(3)
            manager.metrics_pusher.stop_tasks()

    asyncio.run(main())


def test_a_proxy_keeps_serves_ways() -> None:
    async def main() -> None:
        async with real_router() as router:
            router.asyncio_router._handle_source = DeploymentHandleSource.PROXY
            adapter_of(router).subscribe(lambda _: None)
            assert router.asyncio_router._serve_grpc_lists._deferred is None

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["router", "replica"])
def test_a_version_that_does_not_allow_it_keeps_serves_ways_and_says_so_once(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "router":
        monkeypatch.setattr(deferred_lists, "OF_ROUTER", ("assign_request", "assign_nobody"))
    else:
        monkeypatch.setattr(deferred_lists, "is_lazy_possible", lambda: False)
    deferred_lists._say_eager.cache_clear()

    async def main() -> None:
        for _ in range(2):
            async with real_router() as router:
                told: list[Any] = []
                adapter_of(router).subscribe(told.append)
                router.list(running(3, max_ongoing_requests=5))
                router.configure()
                assert len(router.actors.looked_up) == 3
                assert sum(len(news.changed) for news in told) == 3

    with caplog.at_level(logging.WARNING, LOGGER_NAME):
        asyncio.run(main())
    (warning,) = [r.getMessage() for r in caplog.records if "looked up" in r.message]
    assert ("assign_nobody" if kind == "router" else "get_actor_handle") in warning
