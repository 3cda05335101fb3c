"""Payloads that go through three processes, of which the second does not open them.

Args: "kinds", "flat" or "killed". Prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import serve_grpc
from tests.ray.apps.passing import MAKER, MIDDLE, READER
from tests.ray.apps.values import KINDS, OPTIONAL
from tests.ray.driver_scripts.large_faults import living
from tests.ray.driver_scripts.large_values import got
from tests.ray.scripts import own_ray
from tests.ray.waiting import eventually

NAMES = ("Maker", "Middle", "Reader")
SIZE = 10_000_000
TIMES = 3


def deploy() -> dict[str, Any]:
    """By-value handles of all three, by name."""
    app = MIDDLE.bind(MAKER.bind(), READER.bind())
    serve_grpc.run(app, name="passing", route_prefix=None)
    handles = {
        name: serve_grpc.get_deployment_handle(name, "passing").options(_by_reference=False)
        for name in NAMES
    }
    for handle in handles.values():
        living(handle)
    return handles


def held_by(handles: dict[str, Any]) -> dict[str, Any]:
    """What each process holds."""
    return {name: got(handle.resources.remote()) for name, handle in handles.items()}


def unused(handles: dict[str, Any]) -> dict[str, Any]:
    """What each process holds, once nobody reads anything of anybody's."""

    def settled() -> dict[str, Any] | None:
        held = held_by(handles)
        pools = [each["pool"] for each in held.values()]
        is_idle = not any(pool["bytes_in_use"] + pool["bytes_abandoned"] for pool in pools)
        return held if is_idle else None

    return eventually(settled, timeout_s=20)


def kinds() -> dict[str, Any]:
    """Every kind of value, to one replica several times at once, opened in between and again."""
    handles = deploy()
    seen: dict[str, Any] = {"kinds": {}}
    for kind in KINDS:
        if kind not in OPTIONAL or find_spec(OPTIONAL[kind]) is not None:
            seen["kinds"][kind] = got(handles["Middle"].is_same.remote(kind, TIMES))
    seen["held"] = unused(handles)
    return seen


def flat() -> dict[str, Any]:
    """Many chains: what the processes hold after a few, and after all."""
    handles = deploy()
    seen: dict[str, Any] = {"right": []}
    for phase, calls in (("before", 20), ("after", 200)):
        for number in range(calls):
            total = got(handles["Middle"].total.remote(number, SIZE))
            seen["right"].append(total == number * (SIZE // 8))
        seen[phase] = unused(handles)
    return seen


def killed() -> dict[str, Any]:
    """Each of the three is killed while the reader keeps what the maker made."""
    handles = deploy()
    middle, maker, reader = (handles[name] for name in ("Middle", "Maker", "Reader"))
    seen: dict[str, Any] = {}
    for name in NAMES:
        for number in range(3):
            got(middle.keep.remote(f"{number}", number, SIZE))
        lent = got(maker.resources.remote())["pool"]["bytes_in_use"]
        middles = got(middle.resources.remote())["pool"]["bytes_in_use"]
        pid = living(handles[name])
        os.kill(pid, signal.SIGKILL)
        living(handles[name], without=pid)
        fill(maker, middle)
        kept = name == "Reader" or all(
            got(reader.kept_same.remote(f"{number}", np.full(SIZE // 8, float(number))))
            for number in range(3)
        )
        got(reader.let_go.remote())
        seen[name] = {"lent": lent, "middle": middles, "kept": kept, "held": unused(handles)}
    return seen


def fill(maker: Any, middle: Any) -> None:
    """Use again whatever of the maker's memory may be used again, over both ways."""
    for _ in range(5):
        responses = [maker.full.remote(9, SIZE) for _ in range(8)]
        assert all(got(response)[-1] == 9 for response in responses)

        def passed() -> bool:
            try:
                return bool(got(middle.total.remote(9, SIZE)) == 9 * (SIZE // 8))
            except serve_grpc.errors.ServeGrpcError:
                return False  # the middle has not heard yet of the replica that is new

        eventually(passed, timeout_s=20)


TRIED: dict[str, Callable[[], dict[str, Any]]] = {"kinds": kinds, "flat": flat, "killed": killed}


if __name__ == "__main__":
    with own_ray():
        print(json.dumps(TRIED[sys.argv[1]]()))
