"""Runs a script of `driver_scripts` in a process and on a Ray of its own.

For variables that the driver itself reads when it imports Ray Serve.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["own_ray", "run_script"]

ROOT = Path(__file__).resolve().parents[2]


def run_script(
    name: str, *args: str, env: dict[str, str], timeout_s: float = 90.0, stderr: bool = False
) -> str:
    """Run it; returns what it wrote to stdout or stderr. Its failed assertions fail the test."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.ray.driver_scripts.{name}", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stderr if stderr else done.stdout


@contextlib.contextmanager
def own_ray(**http_options: Any) -> Iterator[int]:
    """Ray and Serve for the script, gone at its end; gives the HTTP port."""
    import ray
    from ray import serve

    from tests.conftest import free_port
    from tests.ray.instance import start_ray

    start_ray(num_cpus=4)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port, **http_options})
        yield port
    finally:
        # Without `serve.shutdown()`, which under the throughput flags drains for 30 seconds.
        ray.shutdown()
