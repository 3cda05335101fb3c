"""Applications that many files use. Every test below this directory has the marker `ray`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import serve_grpc
from tests.ray.apps.bench import bench_app

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def bench(serve_instance: None) -> serve_grpc.DeploymentHandle[Any]:
    """By-value handle to the outer workbench (`tests/ray/apps/bench.py`), one replica."""
    return serve_grpc.run(bench_app(), name="bench", route_prefix=None).options(_by_reference=False)


@pytest.fixture(scope="session")
def inner(bench: serve_grpc.DeploymentHandle[Any]) -> serve_grpc.DeploymentHandle[Any]:
    """By-value handle to the inner workbench, one replica."""
    return serve_grpc.get_deployment_handle("Inner", "bench").options(_by_reference=False)


@pytest.fixture
def key() -> str:
    """A name that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def deploy(serve_instance: None) -> Iterator[Callable[..., serve_grpc.DeploymentHandle[Any]]]:
    """Runs applications that go away with the module; gives by-value handles."""
    from ray import serve

    handles: dict[str, serve_grpc.DeploymentHandle[Any]] = {}

    def deploy(app: Any, name: str, **options: Any) -> serve_grpc.DeploymentHandle[Any]:
        handle = serve_grpc.run(app, name=name, **{"route_prefix": None, **options})
        handles[name] = handle.options(_by_reference=False)
        return handles[name]

    yield deploy
    for name, handle in handles.items():
        handle.shutdown()
        serve.delete(name, _blocking=False)
