"""Runs a script of `driver_scripts` in a process of its own.

For variables that the driver itself reads when it imports Ray Serve. Where the nodes and Serve's
controller must read them too, the script starts a Ray (`own_ray`); else it joins the one of the
tests (`joined_ray`, with the variables of `on_shared_ray`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["joined_ray", "on_shared_ray", "own_ray", "run_script"]

ROOT = Path(__file__).resolve().parents[2]


def run_script(
    name: str, *args: str, env: dict[str, str], timeout_s: float = 180.0, stderr: bool = False
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

    from tests.ray.instance import free_port, start_ray

    start_ray(num_cpus=4)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port, **http_options})
        yield port
    finally:
        # Without `serve.shutdown()`, which under the throughput flags drains for 30 seconds.
        ray.shutdown()


def on_shared_ray() -> dict[str, str]:
    """For the process that has the shared Ray: variables with which a script joins it."""
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@contextlib.contextmanager
def joined_ray() -> Iterator[None]:
    """The Ray that `on_shared_ray` names, with the Serve that runs there."""
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()
