"""A cluster of two nodes, of which one is killed while calls run on both.

Prints JSON: {"took_s": from the end of its replica, "died_s": from the kill to that end,
"wrongs": ..., "kinds": outcomes, "after": calls answered afterwards}.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

import serve_grpc
from tests.faults.calls import loop_thread, outcomes_of
from tests.faults.checker import check
from tests.ray.apps.gated import Board
from tests.ray.apps.watched import WATCHED
from tests.ray.waiting import eventually

CALLS = 200
NODE: dict[str, Any] = {
    "num_cpus": 1,
    "include_dashboard": False,
    "object_store_memory": 80_000_000,
}


def main() -> None:
    cluster = Cluster()
    try:
        cluster.add_node(**NODE, resources={"head": 1})
        lost = cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        serve.start(proxy_location="Disabled")
        app = WATCHED.options(num_replicas=2, max_replicas_per_node=1)
        handle: Any = serve_grpc.run(app.bind(), name="nodes", route_prefix=None)
        print(json.dumps(lose_a_node(cluster, lost, handle.options(_by_reference=False))))
    finally:
        ray.shutdown()
        cluster.shutdown()


def lose_a_node(cluster: Cluster, node: Any, handle: Any) -> dict[str, Any]:
    """Calls that run on both, calls that keep coming, and one node killed."""
    with tempfile.TemporaryDirectory() as path, loop_thread() as callers:
        board = Board(Path(path))
        held = [(f"h{i}", lambda i=i: handle.remote(path, f"h{i}", 3.0)) for i in range(CALLS)]
        eventually(lambda: len({handle.pid.remote().result() for _ in range(4)}) == 2)
        running = callers.start(outcomes_of(held))
        eventually(lambda: board.count("start") == CALLS, timeout_s=30)
        pids = Counter(line[2] for line in board.lines("start"))
        dying = callers.start(first_death([int(pid) for pid in pids]))
        killed_s = time.monotonic()
        cluster.remove_node(node, allow_graceful=False)
        outcomes = running.result(60)
        died_s = dying.result(60)
        # Those on the other node end by themselves, after their three seconds.
        errors = [o.ended_s - died_s for o in outcomes if o.error is not None and o.ended_s]
        wrongs = check(board, outcomes)
        after = callers.start(answers(handle, 200)).result(60)
        return {
            "took_s": max(errors, default=None),
            "died_s": died_s - killed_s,
            "wrongs": wrongs.counts(),
            "kinds": Counter(outcome.kind for outcome in outcomes),
            "split": sorted(pids.values()),
            "after": after,
        }


async def first_death(pids: list[int]) -> float:
    """When one of these processes ended; a node takes its time to die."""
    processes = [psutil.Process(pid) for pid in pids]
    # Another process ends; nothing here can be waited for.
    while all(p.is_running() and p.status() != "zombie" for p in processes):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return time.monotonic()


async def answers(handle: Any, number: int) -> int:
    """How many of so many calls at once were answered."""
    made = (handle.echo.remote(i) for i in range(number))
    answers = await asyncio.gather(*made, return_exceptions=True)
    return sum(answer == i for i, answer in enumerate(answers))


if __name__ == "__main__":
    main()
