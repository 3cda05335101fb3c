"""Ray's own benchmark programs over serve_grpc: `bench/ray_programs`, tiny sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from ray import serve

import serve_grpc
from bench.plan.contenders import BY_REFERENCE, OURS
from bench.plan.ray_programs import LATENCY, STREAMING, THROUGHPUT
from bench.ray_programs.programs import app_of, run_program

pytestmark = pytest.mark.full  # they test the benchmark, not the package

APP = "ray-program"


class Program:
    """Runs a program with the application that it deploys called APP."""

    handle: Any = None

    def run(self, name: str, contender: str, **options: Any) -> Any:
        options["num_replicas"] = 1
        app = app_of(name, options, contender)
        self.handle = serve.run(app, name=APP, route_prefix=None)
        return run_program(name, options, contender, self.handle)


@pytest.fixture
def program(serve_instance: None) -> Iterator[Program]:
    yield Program()
    serve.delete(APP)


def test_handle_latency(program: Program) -> None:
    latencies = program.run(LATENCY, OURS, num_requests=5, mode="remote")
    assert isinstance(latencies, pd.Series)
    assert len(latencies) == 5
    assert latencies.min() > 0
    # The limit on messages is that of gRPC, and the error that of serve_grpc.
    with pytest.raises(serve_grpc.errors.MessageTooLargeError):
        program.handle.do_single_request.remote(bytes(5 * 2**20)).result(timeout_s=20)


def test_by_reference_nothing_of_it_is_ours(program: Program) -> None:
    assert len(program.run(LATENCY, BY_REFERENCE, num_requests=2, mode="remote")) == 2
    large = bytes(5 * 2**20)
    assert program.handle.do_single_request.remote(large).result(timeout_s=20) > 0


def test_handle_throughput(program: Program) -> None:
    mean, _, latencies = program.run(
        THROUGHPUT, OURS, batch_size=5, num_trials=2, trial_runtime=0.05
    )
    assert mean > 0
    assert len(latencies) >= 2 * 5


@pytest.mark.parametrize("io_mode", ["async", "sync"])
def test_streaming_throughput(program: Program, io_mode: str) -> None:
    sizes = {"tokens_per_request": 10, "batch_size": 2, "num_trials": 2, "trial_runtime": 0.05}
    mean, *_ = program.run(STREAMING, OURS, io_mode=io_mode, **sizes)
    assert mean > 0
