"""The benchmark's command, end to end, with one small case; on a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.plan.contenders import OURS, OVER_GRPC
from bench.results.run import Run

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
CASE = "in-flight/throughput/1"


def test_one_case_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--only", CASE, "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"},  # the case's flag counts
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert CASE in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 1000
    run = Run.load(tmp_path / "run.json")
    (result,) = run.cases
    assert [sample.contender for sample in result.samples] == list(result.case.contenders)
    for sample in result.samples:
        assert sample.error is None
        assert sample.calls >= 20
        assert sample.calls_per_s > 10
        assert 0 < sample.p50_ms <= sample.p99_ms
        assert sample.caller_cpu_us > 0
        assert sample.callee_cpu_us > 0
    carriers = {sample.contender: sample.carrier for sample in result.samples}
    assert carriers.pop(OURS) == "local"
    assert carriers.pop(OVER_GRPC) == "grpc"
    assert set(carriers.values()) == {""}
    assert "lane / gRPC: calls/s" in done.stdout
    assert run.versions["ray"]
    assert run.machine["cores"] >= 1
