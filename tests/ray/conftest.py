"""Applications that many files use."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

import serve_grpc
from tests.ray.apps.bench import bench_app
from tests.ray.apps.inputs import Reader
from tests.ray.carriers import CARRIERS, carriers_of, options_over
from tests.ray.feeds import OPTIONS


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


@pytest.fixture(scope="module", params=CARRIERS)
def reader(
    request: pytest.FixtureRequest, deploy: Callable[..., Any]
) -> serve_grpc.DeploymentHandle[Any]:
    """By-value handle to the first of a chain of three that read streams, over this carrier."""
    options = options_over(request.param, OPTIONS)
    chain = None
    for name in ("Last", "Middle", "First"):
        bound = serve_grpc.deployment(name=name, **options)(Reader)
        chain = bound.bind(chain) if chain is not None else bound.bind()
    module = request.module.__name__.rpartition(".")[2].replace("_", "-")
    handle: serve_grpc.DeploymentHandle[Any] = deploy(chain, f"{module}-{request.param}")
    assert handle.has_inner.remote().result(timeout_s=60)
    assert carriers_of(handle) == [request.param]
    return handle
