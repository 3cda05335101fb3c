"""Processes that are killed or stopped with large payloads on their way, or still read.

Args: "replica", "caller" or "stopped", and how many rounds. Prints JSON.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import serve_grpc
from tests.ray.apps.values import BUSY, KEEPER, resources, same, write_to
from tests.ray.driver_scripts.large_values import deploy, got
from tests.ray.scripts import own_ray
from tests.ray.waiting import eventually

SIZE = 10_000_000
AT_ONCE = 8


def value_of(number: float) -> Any:
    return np.full(SIZE // 8, float(number))


def outcome_of(response: Any, wanted: Any) -> str:
    """What became of a call, in a word."""
    try:
        value = got(response)
    except Exception as error:
        return type(error).__name__
    return "ok" if same(value, wanted) else "wrong"


def outcomes_of(responses: list[Any], wanted: list[Any]) -> tuple[list[str], float]:
    """What became of each, and how long the last that failed took."""
    began_s = time.monotonic()

    def one(response: Any, value: Any) -> tuple[str, float]:
        return outcome_of(response, value), time.monotonic() - began_s

    with ThreadPoolExecutor(len(responses)) as pool:
        ends = list(pool.map(one, responses, wanted))
    failed_s = [end_s for outcome, end_s in ends if outcome != "ok"]
    return [outcome for outcome, _ in ends], max(failed_s, default=0.0)


def living(handle: Any, *, without: int = 0) -> int:
    """The process of its replica, once there is one that answers."""

    def answering() -> int | None:
        try:
            pid = int(handle.pid.remote().result(timeout_s=10))
        except (serve_grpc.errors.ServeGrpcError, TimeoutError):
            return None  # Serve has not noticed yet that it died
        return pid if pid != without else None

    return eventually(answering, timeout_s=60)


def unused(resources_of: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a process holds, once no range of its pool is in use."""

    def settled() -> dict[str, Any] | None:
        found = resources_of()
        return found if found["pool"]["bytes_in_use"] == 0 else None

    return eventually(settled, timeout_s=20)


def replica(rounds: int) -> dict[str, Any]:
    """The replica is killed with calls on it; every other time they are idempotent."""
    handle = deploy("killed")
    pid = living(handle)
    seen: dict[str, Any] = {"outcomes": [], "kept": [], "caller": [], "settled_s": []}
    for number in range(rounds):
        values = [value_of(n) for n in range(AT_ONCE)]
        kept = got(handle.echo.remote(value_of(7)))
        calling = handle.options(idempotent=number % 2 == 1)
        responses = [calling.echo_after.remote(value, 0.2 * n) for n, value in enumerate(values)]
        in_use = resources()["pool"]["bytes_in_use"]
        got(responses[0])
        os.kill(pid, signal.SIGKILL)
        outcomes, settled_s = outcomes_of(responses, values)
        seen["outcomes"].append(outcomes)
        seen["settled_s"].append(settled_s)
        pid = living(handle, without=pid)
        is_kept = same(kept, value_of(7))
        write_to(kept)
        seen["kept"].append(in_use > 0 and is_kept and got(handle.echo.remote(5)) == 5)
        del kept, responses
        seen["caller"].append(unused(resources))
    return seen


def caller(rounds: int) -> dict[str, Any]:
    """The process that calls is killed: what the replica holds afterwards, each time."""
    options = {"num_cpus": 0.01}
    keeper = KEEPER.options(name="Keeper", ray_actor_options=options).bind()
    busy = serve_grpc.run(BUSY.bind(keeper), name="busy", route_prefix=None)
    busy = busy.options(_by_reference=False)
    handle = serve_grpc.get_deployment_handle("Keeper", "busy").options(_by_reference=False)
    seen: dict[str, Any] = {"outcomes": [], "replica": [], "in_use": []}
    kept_by = got(handle.pid.remote())
    pid = 0
    for _ in range(rounds):
        pid = living(busy, without=pid)
        running = busy.keep_busy.remote(AT_ONCE, SIZE)
        lent = eventually(lambda: got(handle.resources.remote())["pool"]["bytes_in_use"])
        seen["in_use"].append(lent)
        os.kill(pid, signal.SIGKILL)
        seen["outcomes"].append(outcome_of(running, None))
        seen["replica"].append(unused(lambda: got(handle.resources.remote())))
    seen["is_same_replica"] = kept_by == got(handle.pid.remote())
    return seen


def stopped(_: int) -> dict[str, Any]:
    """A stopped replica keeps arguments; its caller gives the session up, and fills its pool."""
    other = deploy("other")
    unused_yet = serve_grpc.run(KEEPER.bind(), name="stopped", route_prefix=None)
    # As one that arrived in a call: it has a router of its own, which goes with it, and as nobody
    # else uses the session, that goes, too.
    handle = pickle.loads(pickle.dumps(unused_yet)).options(_by_reference=False)
    pid = living(handle)
    for number in range(3):
        got(handle.keep.remote(f"{number}", value_of(number)))
    seen: dict[str, Any] = {"lent": resources()["pool"]}
    os.kill(pid, signal.SIGSTOP)
    try:
        running = handle.echo.remote(value_of(3))
        running.cancel()  # a session goes when its last call is over
        handle.shutdown()
        seen["outcome"] = outcome_of(running, None)
        seen["given up"] = unused(resources)["pool"]
        for _ in range(20):  # in every place that the pool may use again
            values = [value_of(9) for _ in range(AT_ONCE)]
            responses = [other.echo.remote(value) for value in values]
            assert all(same(got(r), v) for r, v in zip(responses, values, strict=True))
    finally:
        os.kill(pid, signal.SIGCONT)
    again = unused_yet.options(_by_reference=False)
    seen["is_same_replica"] = living(again) == pid
    seen["kept"] = [
        got(again.kept_same.remote(f"{number}", value_of(number))) for number in range(3)
    ]
    got(again.let_go.remote())
    del responses
    gc.collect()
    seen["replica"] = unused(lambda: got(again.resources.remote()))
    seen["caller"] = unused(resources)
    return seen


TRIED = {"replica": replica, "caller": caller, "stopped": stopped}


if __name__ == "__main__":
    with own_ray():
        print(json.dumps(TRIED[sys.argv[1]](int(sys.argv[2]))))
