"""Applications that many files use."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

import serve_grpc
from tests.ray.apps.bench import bench_app
from tests.ray.carriers import CARRIERS, carriers_of


@pytest.fixture(scope="session")
def bench(bench_over_lane: serve_grpc.DeploymentHandle[Any]) -> serve_grpc.DeploymentHandle[Any]:
    """By-value handle to the outer workbench (`tests/ray/apps/bench.py`), one replica."""
    return bench_over_lane


@pytest.fixture(scope="session")
def bench_over_lane(serve_instance: None) -> serve_grpc.DeploymentHandle[Any]:
    """It, under a name that no file replaces."""
    return serve_grpc.run(bench_app(), name="bench", route_prefix=None).options(_by_reference=False)


@pytest.fixture(scope="session")
def inner(bench: serve_grpc.DeploymentHandle[Any]) -> serve_grpc.DeploymentHandle[Any]:
    """By-value handle to the inner workbench, one replica."""
    return serve_grpc.get_deployment_handle("Inner", "bench").options(_by_reference=False)


@pytest.fixture(scope="session")
def bench_over_grpc(serve_instance: None) -> serve_grpc.DeploymentHandle[Any]:
    """The same as `bench`, without the local lane."""
    app = bench_app("grpc")
    return serve_grpc.run(app, name="bench-grpc", route_prefix=None).options(_by_reference=False)


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> str:
    """Each carrier in turn, for tests of what a carrier may change."""
    return str(request.param)


@pytest.fixture
def bench_over(request: pytest.FixtureRequest, carrier: str) -> serve_grpc.DeploymentHandle[Any]:
    """`bench` over that carrier."""
    name = "bench_over_lane" if carrier == "local" else "bench_over_grpc"
    handle: serve_grpc.DeploymentHandle[Any] = request.getfixturevalue(name)
    handle.remote().result(timeout_s=30)
    assert carriers_of(handle) == [carrier]
    return handle


@pytest.fixture
def inner_over(
    bench_over: serve_grpc.DeploymentHandle[Any],
) -> serve_grpc.DeploymentHandle[Any]:
    """`inner` over it."""
    inner = serve_grpc.get_deployment_handle("Inner", bench_over.app_name)
    return inner.options(_by_reference=False)


@pytest.fixture
def key() -> str:
    """A name that no other test uses."""
    return uuid.uuid4().hex
