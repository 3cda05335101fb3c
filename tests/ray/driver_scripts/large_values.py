"""Large values of all kinds, there and back, over the local lane and over gRPC.

The message limit, and what the processes may keep in shared memory, are raised or lowered by
variables, which this process hands on to its replicas. Args: "kinds", "hoard" or "many". Prints
JSON: {what was tried: "" or what is wrong}, or what processes held.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib.util import find_spec
from typing import Any

import numpy as np
from ray import serve

import serve_grpc
from serve_grpc.errors import SerializationError
from serve_grpc.serialization import get_serializer
from tests.ray.apps.values import KEEPER, KINDS, OPTIONAL, make, resources, same, write_to
from tests.ray.scripts import joined_ray
from tests.ray.waiting import eventually

SERIALIZERS = ("cloudpickle", "pickle", "msgpack", "orjson")
LIMITS = ("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", "SERVE_GRPC_LOCAL_POOL_BYTES")
TIMEOUT_S = 60
MIB = 1024 * 1024
_deployed: list[str] = []


def deploy(name: str, **env: str) -> Any:
    """By-value handle to one replica, whose process has these variables and our limits."""
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    options = {"num_cpus": 0.01, "runtime_env": {"env_vars": {**limits, **env}}}
    app = KEEPER.options(ray_actor_options=options).bind()
    name = f"{name}-{os.getpid()}"  # others may be on this Ray
    handle = serve_grpc.run(app, name=name, route_prefix=None).options(_by_reference=False)
    _deployed.append(name)
    handle.pid.remote().result(timeout_s=TIMEOUT_S)
    return handle


def carrier_of(handle: Any) -> str:
    """What carries its calls."""
    (replica,) = serve_grpc.handle_statistics(handle).replicas
    return replica.carrier


def got(response: Any) -> Any:
    """Its result."""
    return response.result(timeout_s=TIMEOUT_S)


# ------------------------------------------------------------ kinds


def expected(kind: str, serializer: str) -> Any:
    """What comes back, in any process; None if the serializer does not take the value."""
    serializer_ = get_serializer(serializer)
    try:
        return serializer_.load_response(serializer_.dump_response(make(kind)))
    except SerializationError:
        return None


def unary(handle: Any, kind: str, wanted: Any) -> None:
    sent = make(kind)
    for echo in (handle.echo, handle.echo_in_thread):
        response = echo.remote(sent)
        first = got(response)
        assert same(first, wanted), "it arrived changed"
        write_to(first)
        assert same(got(response), wanted), "the second to load it saw what the first wrote"
        assert same(got(echo.remote(sent)), wanted), "a later call saw what was written"
        assert same(sent, make(kind)), "the sent value was written to"


def argument(handle: Any, kind: str, wanted: Any) -> None:
    sent = make(kind)
    for _ in range(3):
        # The handler compares with what it makes, then writes into it.
        same_type = same(wanted, make(kind))
        assert got(handle.is_same.remote(sent, kind)) or not same_type, "the argument was changed"
        assert same(sent, make(kind)), "the handler's writes came back"
    changing = make(kind)
    response = handle.echo.remote(changing)
    write_to(changing)
    assert same(got(response), wanted), "what was written after `remote()` was sent"


def items(handle: Any, kind: str, wanted: Any) -> None:
    stream = handle.options(stream=True)
    for method in (stream.items, stream.items_in_thread):
        numbers = []
        for place, item in enumerate(method.remote(make(kind), 4)):
            if place % 2 == 0:
                numbers.append(item)
                continue
            assert same(item, wanted), f"item {place} arrived changed"
            write_to(item)
        assert numbers == [0, 1, 2, 3], "items are missing"


def passed_on(handle: Any, kind: str, wanted: Any) -> None:
    response = handle.echo.remote(make(kind))
    assert same(got(handle.echo.remote(response)), wanted), "passed on unopened"
    write_to(got(response))
    assert same(got(handle.echo.remote(response)), wanted), "passed on after it was written to"
    assert same(got(response), wanted), "read once more"


def kept(handle: Any, kind: str, wanted: Any) -> None:
    got(handle.keep.remote(kind, make(kind)))
    mine = got(handle.echo.remote(make(kind)))
    others = handle.options(
        request_serialization="cloudpickle", response_serialization="cloudpickle"
    )
    for number in range(4):
        got(others.echo.remote([np.full(40_000, number), b"x" * 320_000, "y" * 1_000_003]))
    assert got(handle.kept_same.remote(kind, wanted)), "a kept argument changed"
    assert same(mine, wanted), "a kept result changed"
    got(handle.let_go.remote())


TRIED = (unary, argument, items, passed_on, kept)


def kinds() -> dict[str, Any]:
    """Every kind with every serializer that takes it, over both lanes."""
    seen: dict[str, Any] = {}
    lanes = {"local": deploy("local"), "grpc": deploy("grpc", SERVE_GRPC_LOCAL="0")}
    for lane, handle in lanes.items():
        for kind in KINDS:
            if kind in OPTIONAL and find_spec(OPTIONAL[kind]) is None:
                continue
            for serializer in SERIALIZERS:
                wanted = expected(kind, serializer)
                if wanted is None:
                    continue
                chosen = handle.options(
                    request_serialization=serializer, response_serialization=serializer
                )
                wrong = []
                for try_it in TRIED:
                    try:
                        try_it(chosen, kind, wanted)
                    except Exception:
                        wrong.append(traceback.format_exc(limit=3))
                seen[f"{kind}, {serializer}, {lane}"] = "\n".join(wrong)
        seen[f"carrier {lane}"] = carrier_of(handle)
        seen[f"replica {lane}"] = eventually_unused(handle)
        handle.shutdown()
    seen["caller"] = resources()
    return seen


def eventually_unused(handle: Any) -> dict[str, Any]:
    """What the replica holds, once no range of its pool or of the caller's is in use."""

    def unused() -> dict[str, Any] | None:
        found = got(handle.resources.remote())
        used = found["pool"]["bytes_in_use"] + resources()["pool"]["bytes_in_use"]
        return found if used == 0 else None

    return eventually(unused, timeout_s=20)


# ------------------------------------------------------------ receivers that keep what they get


def hoard(count: int, size: int) -> dict[str, Any]:
    """A handler, then a caller, that keeps more than a peer is lent."""
    handle = deploy("hoard")
    values = [np.full(size // 8, number) for number in range(count)]
    for number, value in enumerate(values):
        got(handle.keep.remote(f"{number}", value))
    seen: dict[str, Any] = {"carrier": carrier_of(handle), "lent": resources()["pool"]}
    seen["kept"] = all(
        got(handle.kept_same.remote(f"{n}", value)) for n, value in enumerate(values)
    )
    mine = [got(handle.echo.remote(value)) for value in values]
    seen["came"] = all(map(same, mine, values))
    seen["borrowed"] = got(handle.resources.remote())["pool"]
    del mine
    got(handle.let_go.remote())
    seen["replica"] = eventually_unused(handle)
    seen["caller"] = resources()
    return seen


# ------------------------------------------------------------ many


def many(count: int, size: int) -> dict[str, Any]:
    """Echoes one after the other: what both sides hold after a few of them, and after all."""
    handle = deploy("many")
    value = np.random.default_rng(0).random(size // 8)
    seen: dict[str, Any] = {}
    for phase, calls in (("before", 30), ("after", count)):
        for _ in range(calls):
            assert got(handle.echo.remote(value))[-1] == value[-1]
        seen[phase] = {"replica": eventually_unused(handle), "caller": resources()}
    seen["carrier"] = carrier_of(handle)
    return seen


def main(what: str) -> None:
    tried = {"kinds": kinds, "hoard": lambda: hoard(12, 8 * MIB), "many": lambda: many(300, 10**7)}
    with joined_ray():
        print(json.dumps(tried[what]()))
        for name in _deployed:
            serve.delete(name, _blocking=False)


if __name__ == "__main__":
    main(sys.argv[1])
