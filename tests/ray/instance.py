"""A Ray of the tests' own, and ports for it.

It is the Ray that `ray.init` starts, without what a test has no use for (the monitors and the API
server of its node), and its workers are forked: see `tests/ray/forked`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.ray.forked import setup_worker, worker

__all__ = ["fork_workers", "free_port", "start_ray"]

TOO_SLOW = "timed out during startup"
NOT_NEEDED = ("start_monitor", "start_log_monitor", "start_api_server")
"""Parts of a head node: the autoscaler, the copying of logs to the driver, the dashboard's server.
Each is a process that imports most of Ray."""
ROOM = "-" * 200
ROOT = Path(__file__).resolve().parents[2]
FIRST_JOB = "01000000"
"""The id of the driver that starts a Ray, to which all that Serve starts belongs."""
ON_DEMAND = {"RAY_prestart_worker_first_driver": "0"}
"""No workers before there is a job for them: these could not be forked."""
_servers: list[subprocess.Popen[bytes]] = []


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_ray(**options: Any) -> None:
    """Start Ray on this machine, without dashboard and without its output.

    Ray gives its node 30 seconds, which is too short while it is read from a cold disk for the
    first time; then it is started once more.
    """
    import ray

    fork_workers()
    options = {
        "address": "local",
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        **options,
    }
    try:
        ray.init(**options)
    except Exception as error:
        if TOO_SLOW not in str(error):
            raise
        ray.shutdown()
        ray.init(**options)


def fork_workers() -> None:
    """Have the node that this process starts next fork its workers, and do without `NOT_NEEDED`."""
    from ray._private.node import Node

    if Node.start_raylet.__name__ != forking.__name__:
        for name in NOT_NEEDED:
            setattr(Node, name, lambda self, **_: None)
        Node.start_raylet = forking(Node.start_raylet)


def forking(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
    """It, with a server that forks the node's workers."""

    def forking(node: Any, *args: Any, **kwargs: Any) -> None:
        node._ray_params.worker_path = worker.__file__
        node._ray_params.setup_worker_path = setup_worker.__file__
        os.environ.update(ON_DEMAND)
        path = os.environ[worker.SERVER] = f"{tempfile.mkdtemp(prefix='forks-')}/server"
        start_raylet(node, *args, **kwargs)
        (raylet,) = node.all_processes["raylet"]
        start_server(path, raylet.process.pid)

    return forking


def start_server(path: str, raylet: int) -> None:
    """Start one for a raylet, with the variables that it gives the workers of the first job."""
    environ = {
        **psutil.Process(raylet).environ(),
        "LD_PRELOAD": "",  # what is there is the raylet's
        "RAY_JOB_ID": FIRST_JOB,
        "RAY_RAYLET_PID": f"{raylet}",
    }
    command = [sys.executable, "-m", "tests.ray.forked.server", path, ROOM]
    # It ends when this process does, and with it the pipe.
    _servers.append(subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE))
