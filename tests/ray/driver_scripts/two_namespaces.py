"""Two Ray nodes in network namespaces of their own, and the link between them taken down.

Without arguments it makes the namespaces, starts the nodes and itself as the driver in the first
one, and takes everything away again. The driver prints JSON: {"took_s": ..., "wrongs": ...,
"kinds": outcomes, "during": calls answered while the link was down}.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ray.waiting import eventually

NEAR, FAR = (f"sg{os.getpid()}{side}" for side in "ab")
ADDRESSES = "10.231.77.1", "10.231.77.2"
PORT = 6399
CALLS = 100
DRIVER = "driver"


def why_not() -> str:
    """Why this machine does not allow it; empty if it does."""
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"sg{os.getpid()}try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def _namespaces() -> Iterator[None]:
    try:
        for namespace in (NEAR, FAR):
            _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", NEAR, "netns", NEAR, "type", "veth", "peer", FAR, "netns", FAR)
        for namespace, address in zip((NEAR, FAR), ADDRESSES, strict=True):
            _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", namespace)
            _run("ip", "-n", namespace, "link", "set", namespace, "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        yield
    finally:
        for namespace in (NEAR, FAR):
            pids = subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            )
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def _start_node(namespace: str, *options: str) -> None:
    """A Ray node in its namespace, until that ends."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "ray.scripts.scripts"]
    command += ["start", "--block", "--num-cpus=1", "--disable-usage-stats", *options]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    # Newer Rays give each cluster a token of its own, which other processes would have to be told.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory, _namespaces():
        address, (near, far) = f"{ADDRESSES[0]}:{PORT}", ADDRESSES
        head = f"--port={PORT}", f"--temp-dir={directory}", "--include-dashboard=false"
        _start_node(NEAR, "--head", f"--node-ip-address={near}", *head)
        # Slow where no name can be looked up.
        eventually(Path(directory, "session_latest/sockets/raylet").exists, timeout_s=90)
        _start_node(FAR, f"--address={address}", f"--node-ip-address={far}")
        module = [sys.executable, "-m", __spec__.name, DRIVER, address, FAR]
        subprocess.run(["ip", "netns", "exec", NEAR, *module], check=True, timeout=150)


def drive(address: str, far: str) -> None:
    """The driver, on the near node."""
    import ray
    from ray import serve

    import serve_grpc
    from tests.ray.apps.watched import WATCHED

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        eventually(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, timeout_s=60)
        serve.start(proxy_location="Disabled")
        app = WATCHED.options(num_replicas=2, max_replicas_per_node=1)
        handle: Any = serve_grpc.run(app.bind(), name="apart", route_prefix=None)
        print(json.dumps(pull_the_link(handle.options(_by_reference=False), far)))
    finally:
        ray.shutdown()


def pull_the_link(handle: Any, far: str) -> dict[str, Any]:
    """Calls that run on both nodes when the link goes down, and calls afterwards."""
    from tests.faults.calls import loop_thread, outcomes_of
    from tests.faults.checker import check
    from tests.ray.apps.gated import Board
    from tests.ray.driver_scripts.lost_node import answers

    with tempfile.TemporaryDirectory() as path, loop_thread() as callers:
        board = Board(Path(path))
        held = [(f"h{i}", lambda i=i: handle.remote(path, f"h{i}", 12.0)) for i in range(CALLS)]
        eventually(lambda: len({handle.pid.remote().result() for _ in range(4)}) == 2)
        running = callers.start(outcomes_of(held))
        eventually(lambda: board.count("start") == CALLS, timeout_s=30)
        down_s = time.monotonic()
        _run("ip", "-n", far, "link", "set", far, "down")
        # Suspected after a few heartbeats; from then on no call goes there.
        eventually(lambda: "suspect" in states(handle) or "lost" in states(handle), timeout_s=10)
        during = callers.start(answers(handle, 200)).result(60)
        outcomes = running.result(60)
        errors = [o.ended_s - down_s for o in outcomes if o.error is not None and o.ended_s]
        return {
            "took_s": max(errors, default=None),
            "wrongs": check(board, outcomes).counts(),
            "kinds": Counter(outcome.kind for outcome in outcomes),
            "during": during,
        }


def states(handle: Any) -> list[str]:
    """Of the sessions to the replicas."""
    import serve_grpc

    return [replica.state for replica in serve_grpc.handle_statistics(handle).replicas]


if __name__ == "__main__":
    drive(*sys.argv[2:]) if sys.argv[1:2] == [DRIVER] else main()
