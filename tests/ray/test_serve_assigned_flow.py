"""Streams and results of calls that Serve's own router assigns: who may be how far ahead."""

from __future__ import annotations

import threading

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

import serve_grpc
from serve_grpc.config import settings
from tests.ray.apps.bench import Workbench
from tests.ray.apps.routed import AnyReplica, WhereLoaded
from tests.ray.waiting import eventually

OPTIONS = {
    "max_ongoing_requests": 100,
    "graceful_shutdown_wait_loop_s": 0.1,
    "ray_actor_options": {"num_cpus": 0.01},
}


@pytest.fixture(scope="module")
def assigned(deploy):
    """A workbench whose calls the user's own request router assigns."""
    config = RequestRouterConfig(request_router_class=AnyReplica)
    app = serve_grpc.deployment(**OPTIONS, request_router_config=config)(Workbench).bind()
    return deploy(app, "assigned-flow")


def produced(handle, key):
    return handle.watch.remote(key).result(timeout_s=20)["produced"]


@pytest.mark.parametrize("method", ["endless", "endless_in_thread"])
def test_a_slow_consumer_pauses_its_producer(assigned, key, method):
    size = 20_000
    stream = assigned.options(method_name=method, stream=True).remote(key, size)
    next(stream)

    def has_stopped():
        before = produced(assigned, key)
        for _ in range(20):  # other calls pass while the stream is paused
            assigned.remote(1).result(timeout_s=20)
        return before if produced(assigned, key) == before else 0

    ahead = eventually(has_stopped)
    assert ahead <= settings.stream_window_bytes // size + 3
    for _ in range(300):
        assert len(next(stream)) == size
    assert produced(assigned, key) >= 300
    assert eventually(has_stopped) <= 301 + settings.stream_window_bytes // size + 3
    stream.cancel()


def test_every_item_arrives_in_order(assigned):
    stream = assigned.options(method_name="items", stream=True).remote(2_000)
    assert list(stream) == list(range(2_000))


def test_values_are_loaded_by_who_takes_them(assigned):
    assert assigned.remote(WhereLoaded()).result(timeout_s=20) == threading.current_thread().name
    stream = assigned.options(method_name="each", stream=True).remote([WhereLoaded()])
    assert list(stream) == [threading.current_thread().name]


def test_a_slow_consumer_over_serves_own_transport_is_not_flooded(deploy, key):
    plain = deploy(serve.deployment(**OPTIONS)(Workbench).bind(), "plain-flow")
    count = 20 * settings.stream_window_items
    stream = plain.options(method_name="items", stream=True).remote(count)
    first = next(stream)
    eventually(lambda: len(stream._call._items) >= settings.stream_window_items - 1)
    plain.remote(1).result(timeout_s=20)
    assert len(stream._call._items) <= settings.stream_window_items
    assert [first, *stream] == list(range(count))
