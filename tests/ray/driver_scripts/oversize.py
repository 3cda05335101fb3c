"""Payloads over the limit with SERVE_GRPC_OVERSIZE=by_reference; each scenario in turn.

Prints JSON: {name of a scenario: "" or what went wrong}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

import serve_grpc
from serve_grpc._serve import store
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaError,
    ServeGrpcError,
)
from serve_grpc.payload import Segments, Stored
from tests.ray.apps.oversize import LIMIT, SMALL, Oversize, array, echo_app
from tests.ray.apps.references import known
from tests.ray.instance import free_port, start_ray
from tests.ray.oversize_deaths import DEATHS, FREED_S, raised
from tests.ray.waiting import eventually

STORE_BYTES = 160 * 1024 * 1024
TEXT = "ä" * LIMIT
BYTES = os.urandom(LIMIT + 1)
VALUES: dict[str, list[Any]] = {
    "cloudpickle": [BYTES, {"a": [array()], "b": TEXT}, [array(i)[:400] for i in range(500)]],
    "pickle": [BYTES, bytearray(BYTES), (array(), TEXT)],
    "msgpack": [BYTES, {"text": TEXT, "numbers": list(range(500_000))}],
    "orjson": [TEXT, list(range(500_000))],
    "noop": [BYTES],
    "zlib": [os.urandom(2 * LIMIT)],
}

scenarios: list[Callable[[Any], None]] = []


def scenario(function: Callable[[Any], None]) -> Callable[[Any], None]:
    scenarios.append(function)
    return function


def all_known(handle: Any) -> set[str]:
    gc.collect()
    return known() | set(handle.known.remote().result(timeout_s=60))


def plasma_bytes() -> float:
    """What is in use of the object store of this only node."""
    total = ray.cluster_resources()["object_store_memory"]
    return total - ray.available_resources().get("object_store_memory", 0.0)


def same(one: Any, other: Any) -> bool:
    return pickle.dumps(one) == pickle.dumps(other)


# ------------------------------------------------------------ values


@scenario
def all_serializers(echo: Any) -> None:
    for name, values in VALUES.items():
        handle = echo.options(request_serialization=name, response_serialization=name)
        for value in values:
            for method in ("echo", "echo_in_thread"):
                result = getattr(handle, method).remote(value).result(timeout_s=60)
                if isinstance(value, bytes) and name == "noop":
                    assert type(result) is bytes
                assert str(result) == str(value) if name == "cloudpickle" else result is not None
                if name in ("msgpack", "orjson", "noop", "zlib"):
                    assert result == value, name
        large_request = echo.options(request_serialization=name)
        assert large_request.size.remote(values[0]).result(timeout_s=60) == len(values[0])


@scenario
def arrays_arrive_writable_on_both_sides(echo: Any) -> None:
    given = array()
    response = echo.add_one.remote(given)
    given[:] = -1.0  # `remote()` has copied when it returns
    for _ in range(2):
        result = response.result(timeout_s=60)
        assert result.flags.writeable
        assert np.array_equal(result, array(1))
        result[:] = 0.0  # the next one is another one


@scenario
def awaited_on_a_loop(echo: Any) -> None:
    async def main() -> list[int]:
        responses = [echo.echo.remote(array(i)) for i in range(8)]
        return [int((await response)[0]) for response in responses]

    assert asyncio.run(main()) == list(range(8))


@scenario
def refs_in_values_are_lent_along(echo: Any) -> None:
    before = all_known(echo)
    box = echo.lend.remote([ray.put([1, 2, 3])], BYTES).result(timeout_s=60)
    assert ray.get(box[0], timeout=60) == 3
    del box
    eventually(lambda: all_known(echo) <= before, timeout_s=FREED_S)


@scenario
def a_response_is_passed_on_unopened(echo: Any) -> None:
    app = serve_grpc.deployment(Oversize, name="Outer", **SMALL).bind(
        serve_grpc.deployment(Oversize, name="Inner", **SMALL).bind()
    )
    outer = serve_grpc.run(app, name="chain", route_prefix=None).options(_by_reference=False)
    assert np.array_equal(outer.pass_on.remote(array()).result(timeout_s=60), array())
    own = echo.add_one.remote(array())
    assert np.array_equal(echo.add_one.remote(own).result(timeout_s=60), array(2))
    serve.delete("chain")


@scenario
def calls_that_serves_router_assigns(echo: Any) -> None:
    add_one = echo.options(method_name="add_one")

    async def main() -> list[Any]:
        async with add_one.choose_replica(array()) as selection:
            result = await add_one.dispatch(selection, array())
        return [result, *await echo.broadcast("add_one", array()).results_async()]

    results = asyncio.run(main())
    assert [np.array_equal(result, array(1)) for result in results] == [True, True]


# ------------------------------------------------------------ what still fails


@scenario
def an_item_of_a_stream_still_fails(echo: Any) -> None:
    items = echo.options(stream=True).items.remote([10, LIMIT + 1], BYTES)
    assert next(items) == b"x" * 10
    with pytest.raises(MessageTooLargeError) as error:
        next(items)
    assert (error.value.direction, error.value.limit) == ("response", LIMIT)
    assert error.value.may_have_executed
    # The request was over the limit, too, and is the next one's.
    assert len(list(echo.options(stream=True).items.remote([10] * 5, BYTES))) == 5
    assert echo.size.remote(BYTES).result(timeout_s=60) == len(BYTES)


@scenario
def a_replica_that_says_error_gets_none(echo: Any) -> None:
    env = {"runtime_env": {"env_vars": {"SERVE_GRPC_OVERSIZE": "error"}}}
    handle = echo_app("Strict", "strict", ray_actor_options={"num_cpus": 0.01, **env})
    error = raised(MessageTooLargeError, handle.size.remote(BYTES))
    assert (error.direction, error.limit) == ("request", LIMIT)
    assert error.size > LIMIT
    assert not error.may_have_executed
    assert "SERVE_GRPC_OVERSIZE=by_reference" in str(error)
    error = raised(MessageTooLargeError, handle.lend.remote([ray.put([1])]))
    assert (error.direction, error.limit, error.may_have_executed) == ("response", LIMIT, True)
    assert handle.echo.remote(b"small").result(timeout_s=60) == b"small"
    serve.delete("strict")


@scenario
def a_replica_with_a_lower_limit_is_respected(echo: Any) -> None:
    env = {"env_vars": {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 1024)}}
    options = {"num_cpus": 0.01, "runtime_env": env}
    handle = echo_app("Low", "low", ray_actor_options=options)
    value = os.urandom(200_000)
    assert handle.echo.remote(value).result(timeout_s=60) == value
    assert handle.echo.remote(BYTES).result(timeout_s=60) == BYTES
    serve.delete("low")


# ------------------------------------------------------------ objects are freed


@scenario
def objects_of_calls_that_are_given_up_are_freed(echo: Any) -> None:
    before = all_known(echo)
    with tempfile.TemporaryDirectory() as folder:
        started = Path(folder) / "cancelled"
        response = echo.hang.remote(array(), str(started))
        eventually(started.exists)
        response.cancel()
        raised(serve.exceptions.RequestCancelledError, response)
        late = echo.options(timeout_s=2.0).hang.remote(array(), str(Path(folder) / "late"))
        assert raised(DeadlineExceededError, late).may_have_executed
    early = [echo.echo.remote(array()) for _ in range(10)]
    for response in early:
        response.cancel()
    del early, response, late
    eventually(lambda: all_known(echo) <= before, timeout_s=FREED_S)


@scenario
def a_thousand_calls_leave_nothing(echo: Any) -> None:
    # Six times the store passes through it, each way.
    value = os.urandom(LIMIT + 1)
    assert echo.echo.remote(value).result(timeout_s=60) == value
    before, used = all_known(echo), plasma_bytes()
    # Nobody holds its object any more, only the response its memory.
    kept = echo.echo.remote(array())
    assert np.array_equal(kept.result(timeout_s=60), array())

    async def some(count: int) -> None:
        for _ in range(count):
            assert len(await echo.echo.remote(value)) == len(value)

    async def main() -> None:
        await asyncio.gather(*(some(250) for _ in range(4)))

    asyncio.run(main())
    eventually(lambda: all_known(echo) <= before, timeout_s=FREED_S)
    assert np.array_equal(kept.result(timeout_s=60), array())
    del kept
    gc.collect()
    eventually(lambda: plasma_bytes() <= used + LIMIT, timeout_s=FREED_S)


scenarios.extend(DEATHS)


# ------------------------------------------------------------ peers that lie


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


@scenario
def what_does_not_resolve_fails_its_own_call(echo: Any) -> None:
    real = store.put
    good = real(b"x" * 10)
    assert good.stored is not None
    _, object_id, owner = good.stored
    kept = ray.put([1, 2])
    places = {
        "no id": Stored(LIMIT + 1, b"", owner),
        "short id": Stored(LIMIT + 1, b"short", owner),
        "no object": Stored(LIMIT + 1, os.urandom(28), owner),
        "no owner": Stored(LIMIT + 1, object_id, b""),
        "broken owner": Stored(LIMIT + 1, object_id, b"\xff\xff\xff"),
        "owner with a short id": Stored(LIMIT + 1, object_id, owner.replace(owner[2:30], b"")),
        "no payload": Stored(LIMIT + 1, kept.binary(), owner),
    }
    called = echo.count.remote().result(timeout_s=60)
    try:
        for name, place in places.items():
            store.put = lambda _, place=place: Segments((), (kept,), place)
            error = raised(ReplicaError, echo.echo.remote(BYTES))
            assert not error.may_have_executed, (name, error)
    finally:
        store.put = real
    assert echo.count.remote().result(timeout_s=60) == called
    assert echo.echo.remote(BYTES).result(timeout_s=60) == BYTES


@scenario
def where_pickle_is_refused_none_is_read(echo: Any) -> None:
    handle = echo_app(
        "Plain",
        "plain",
        ray_actor_options={
            "num_cpus": 0.01,
            "runtime_env": {"env_vars": {"SERVE_GRPC_SERIALIZERS": "msgpack"}},
        },
    ).options(request_serialization="msgpack", response_serialization="msgpack")
    assert handle.echo.remote(BYTES).result(timeout_s=60) == BYTES
    real = store.put
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unpickled"
        evil = ray.put([_Evil(str(path)), pickle.PickleBuffer(BYTES)])
        place = Stored(len(BYTES), evil.binary(), real(b"").stored.owner_address)
        store.put = lambda _: Segments((), (evil,), place)
        try:
            raised(ServeGrpcError, handle.echo.remote(BYTES))
        finally:
            store.put = real
        assert not path.exists()
        ray.get(evil)
        assert path.exists()  # it would have been seen
    serve.delete("plain")


@scenario
def what_went_by_reference_is_counted(echo: Any) -> None:
    from serve_grpc.caller.connection import Connection

    counters = {
        id(thing._counters): thing._counters
        for thing in gc.get_objects()
        if type(thing) is Connection and thing.peer.facts.deployment == "Echo"
    }
    [counted] = counters.values()
    sent, received = counted.stored_sent, counted.stored_received
    assert echo.echo.remote(BYTES).result(timeout_s=60) == BYTES
    assert echo.size.remote(BYTES).result(timeout_s=60) == len(BYTES)
    assert (counted.stored_sent - sent, counted.stored_received - received) == (2, 1)


def main() -> None:
    serve_grpc.register_serializer(
        "zlib",
        dumps=lambda value: zlib.compress(pickle.dumps(value), level=1),
        loads=lambda data: pickle.loads(zlib.decompress(data)),
    )
    start_ray(num_cpus=4, object_store_memory=STORE_BYTES)
    came_of: dict[str, str] = {}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        echo = echo_app("Echo", "echo")
        for one in scenarios:
            started_s = time.monotonic()
            try:
                one(echo)
                came_of[one.__name__] = ""
            except BaseException:
                came_of[one.__name__] = traceback.format_exc()[-3000:]
            print(one.__name__, f"{time.monotonic() - started_s:.1f} s", came_of[one.__name__])
    finally:
        ray.shutdown()
    print(json.dumps(came_of))


if __name__ == "__main__":
    main()
