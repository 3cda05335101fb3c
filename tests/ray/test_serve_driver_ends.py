"""What a driver prints when it is done: nothing."""

from __future__ import annotations

import pytest

PATIENT = {
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
}
"""Serve asks new replicas how full they are, and warns of those that are slow to say so."""
FLAGS = {"default": "0", "throughput": "1"}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("how", ["in_thread", "on_loop", "leaves_ray"])
def test_a_driver_that_ends_says_nothing(run_script, flags, how):
    env = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": FLAGS[flags], **PATIENT}
    _, end = run_script("ends", how, env=env, timeout_s=170, stderr=True).split("END\n")
    lines = [line for line in end.splitlines() if "serve_grpc" in line or "WARNING" in line]
    assert lines == []
    assert "Traceback" not in end
