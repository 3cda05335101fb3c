"""`get_app_handle` and `get_deployment_handle` give the same handle each time, as Serve's do."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
from ray import serve

import serve_grpc
from tests.ray.apps.asking import asking_app


@pytest.fixture(scope="module")
def running(deploy):
    return deploy(asking_app(), "kept")


def test_one_handle_for_all_that_ask(running):
    handle = serve_grpc.get_app_handle("kept")
    assert serve_grpc.get_app_handle("kept") is handle
    one = serve_grpc.get_deployment_handle("Asker", "kept")
    assert serve_grpc.get_deployment_handle("Asker", "kept") is one
    assert one is not serve_grpc.get_deployment_handle("Asker", "kept", _check_exists=False)
    assert handle.options(_by_reference=False).echo.remote(1).result(timeout_s=20) == 1
    assert serve_grpc.get_app_handle("kept") is handle
    assert copy.copy(serve.get_app_handle("kept")).echo.remote(2).result(timeout_s=20) == 2


def test_one_handle_in_a_replica(running):
    assert running.remote().result(timeout_s=20) == [True, True, True]


def test_the_handle_of_an_app_that_is_deployed_again_goes_on(running):
    handle = serve_grpc.get_app_handle("kept")
    assert serve_grpc.run(asking_app(), name="kept", route_prefix=None) is handle
    assert handle.options(_by_reference=False).echo.remote(3).result(timeout_s=20) == 3


def test_a_handle_that_was_shut_down_is_not_given_again(running):
    handle = serve_grpc.get_app_handle("kept")
    by_value = handle.options(_by_reference=False)
    by_value.remote().result(timeout_s=20)
    by_value.shutdown()
    again = serve_grpc.get_app_handle("kept")
    assert again is not handle
    assert again.options(_by_reference=False).echo.remote(4).result(timeout_s=20) == 4


def test_a_handle_lives_as_long_as_serves(running):
    client = serve.context._get_global_client()
    handle = serve_grpc.get_app_handle("kept")
    gone = weakref.ref(handle)
    key = ("Asker", "kept", False)
    client.handle_cache.pop(key)  # what Serve does when it keeps too many
    assert serve_grpc.get_app_handle("kept") is not handle
    del handle
    gc.collect()
    assert gone() is None


def test_wrapping_gives_a_new_handle_each_time(running):
    serves = serve.get_app_handle("kept")
    assert serve_grpc.wrap(serves) is not serve_grpc.wrap(serves)
