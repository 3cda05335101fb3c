"""Libraries that observe gRPC in the same process: sessions work, plain calls are observed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.observers import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
CALL, STREAM = "/serve_grpc.v1.Replica/Call", "/serve_grpc.v1.Replica/CallStream"
OBSERVED = {  # by what they do with a server's calls of either kind
    "sentry": [CALL],
    "opentelemetry": [CALL, STREAM],
    "ddtrace": [CALL, STREAM],
    "elastic": [CALL],
}


@pytest.mark.parametrize(
    ("library", "when"),
    [
        *((library, "before import") for library in LIBRARIES),
        ("sentry", "before start"),
        ("opentelemetry", "after start"),
    ],
)
def test_sessions_are_not_observed_and_plain_calls_are(library: str, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.behaviour.observed", library, when],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "answers": ["one", "two", "plain", "plain", "plain", "plain"],
        "seen": [] if when == "after start" else OBSERVED[library],
    }
