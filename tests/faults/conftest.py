"""Fixtures of the fault suite, and the file its figures go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve

import serve_grpc
from serve_grpc.protocol import caller, replica, wire
from tests.faults import figures
from tests.faults.calls import LoopThread, loop_thread
from tests.faults.replicas import wait_for_replicas
from tests.ray.apps.fed import FED
from tests.ray.apps.gated import Board
from tests.ray.apps.troubled import TROUBLED
from tests.ray.carriers import CARRIERS, carriers_of, options_over


@pytest.fixture(scope="session")
def three_replicas(serve_instance: None) -> Any:
    """By-value handle to three troubled replicas, of 170 calls at once each."""
    app = TROUBLED.options(num_replicas=3, max_ongoing_requests=170).bind()
    return serve_grpc.run(app, name="three", route_prefix=None).options(_by_reference=False)


@pytest.fixture
def three(three_replicas: Any) -> Any:
    """The same, once all three are up and have a session."""
    wait_for_replicas(three_replicas, 3)
    return three_replicas


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Where the handlers of one test take notes."""
    board = Board(tmp_path)
    yield board
    board.release()


@pytest.fixture
def callers() -> Iterator[LoopThread]:
    """A loop for callers."""
    with loop_thread() as thread:
        yield thread


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`measured(row, fault, what, required, value)`: write down a figure of this test."""

    def measured(row: int, fault: str, what: str, required: str, value: object) -> None:
        test = f"{request.path.name}::{request.node.originalname}"
        figures.record(figures.Figure(row, fault, what, required, str(value), test))

    return measured


@pytest.fixture(scope="session")
def outer(serve_instance: None) -> Any:
    """By-value handle to one replica that calls another one, of 500 slots."""
    inner = TROUBLED.options(name="Inner").bind()
    app = TROUBLED.options(name="Outer", max_ongoing_requests=600).bind(inner)
    return serve_grpc.run(app, name="chain", route_prefix=None).options(_by_reference=False)


@pytest.fixture(scope="session")
def inner(outer: Any) -> Any:
    """By-value handle to the other one."""
    return serve_grpc.get_deployment_handle("Inner", "chain").options(_by_reference=False)


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> str:
    """Each carrier in turn."""
    return str(request.param)


@pytest.fixture
def feeder(serve_instance: None, carrier: str) -> Any:
    """By-value handle to one replica of `Fed` that uploads to another one over this carrier."""
    name = f"fed-{carrier}"
    if name not in serve.status().applications:
        fed = FED.options(**options_over(carrier, {"ray_actor_options": {"num_cpus": 0.01}}))
        app = fed.options(name="Feeder", max_ongoing_requests=300).bind(fed.bind())
        serve_grpc.run(app, name=name, route_prefix=None)
    feeder = serve_grpc.get_app_handle(name).options(_by_reference=False)
    wait_for_replicas(feeder, 1)
    return feeder


@pytest.fixture
def sink(feeder: Any, carrier: str) -> Any:
    """By-value handle to the other one, which has 100 slots."""
    sink = serve_grpc.get_deployment_handle("Fed", feeder.app_name).options(_by_reference=False)
    wait_for_replicas(sink, 1)
    assert carriers_of(sink) == [carrier]
    return sink


@pytest.fixture
def tiny_fragments() -> Iterator[None]:
    """Of 20 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (wire, caller, replica):
            patch.setattr(module, "INLINE_BYTES", 12)
        patch.setattr(wire, "FRAGMENT_BYTES", 20)
        yield
