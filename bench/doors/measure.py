"""What doors cost: sessions over the lane and over gRPC, signed calls, beside a bare gRPC stream.

The replica and the caller are the package's own, in a process each, with an echo in the place of
the user's code and without Serve. All echo 100 bytes; doors take turns, medians of the rounds are
given.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from bench.doors.server import REPLICA_ID, certificates, run_server
from bench.load.closed_loop import run_in_loop
from bench.load.floors import Floors
from bench.load.window import RAMP, Counted, Window
from bench.plan.contenders import BARE_STREAM
from bench.results.doors import BARE, Row
from bench.stand_ins.echo import HOST, SECRET
from bench.stand_ins.lone_router import LoneRouter
from serve_grpc._generated.replica_pb2 import CallRequest
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.carriers.grpc.credentials import open_channel
from serve_grpc.carriers.link import Link
from serve_grpc.carriers.local import dial as local_carrier
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.protocol.handshake import sign_call
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts

__all__ = ["measure_doors"]

LANE = "session over the local lane"
SESSION = "session over gRPC, plaintext"
TLS = "session over gRPC, mutual TLS"
SIGNED = "plain door, each call signed"
IN_FLIGHT = {1: "p50_ms", 100: "calls_per_s"}
ROUNDS = 4
WINDOW_S = 0.25
PATIENCE_S = 20.0
VALUE = b"x" * 100
METHOD = "/serve_grpc.v1.Replica/Call"
ENVELOPE = Envelope("__call__", "noop", "noop", False, "", "")


def measure_doors() -> Iterator[Row]:
    """A row a door and number of calls in flight; see `results/doors.py`."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="doors-"))
        paths = certificates(Path(directory))
        secure = Settings(
            use_tls=True, tls_cert_path=paths[0], tls_key_path=paths[1], tls_ca_path=paths[0]
        )
        ours, theirs = context.Pipe()
        path = str(Path(directory) / "lane")
        server = context.Process(target=run_server, args=(theirs, secure, path), daemon=True)
        server.start()
        theirs.close()
        stack.callback(server.join, PATIENCE_S)
        stack.callback(ours.close)
        floors = Floors(is_uvloop=False)
        stack.callback(floors.close)
        client = stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
        plain_port, tls_port = _ports(ours)
        pid = server.pid

        def of(door: str, at: int | str, settings: Settings) -> Callable[[Window], Counted]:
            return lambda window: client.submit(_load, door, at, settings, window, pid).result()

        doors: dict[str, Callable[[Window], Counted]] = {
            BARE: lambda window: asyncio.run(floors.measure(BARE_STREAM, VALUE, window)),
            LANE: of(LANE, path, Settings()),
            SESSION: of(SESSION, plain_port, Settings()),
            TLS: of(TLS, tls_port, secure),
            SIGNED: of(SIGNED, plain_port, Settings()),
        }
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for door, load in doors.items():
                for in_flight in IN_FLIGHT:
                    counted = load(Window(in_flight, WINDOW_S, ramp_s=RAMP * WINDOW_S))
                    seconds = counted.latencies_s
                    rate = len(seconds) / counted.seconds
                    value = statistics.median(seconds) * 1e3 if in_flight == 1 else rate
                    found[door, in_flight].append(value)
        for (door, in_flight), values in found.items():
            unit = "ms" if in_flight == 1 else "calls/s"
            name = f"{door}: {'p50' if in_flight == 1 else 'calls'}"
            value = statistics.median(values)
            yield {"door": door, "name": name, "x": in_flight, "value": value, "unit": unit}


def _ports(pipe: Pipe) -> tuple[int, int]:
    if not pipe.poll(PATIENCE_S):
        raise TimeoutError(f"no server within {PATIENCE_S} s")
    ports: tuple[int, int] = pipe.recv()
    return ports


# ---------------------------------------------------------------- the calling process


def _load(door: str, at: int | str, settings: Settings, window: Window, pid: int) -> Counted:
    """One window; `at` is the door's port, or the path of its socket."""
    if isinstance(at, int):
        kind = _load_plain if door == SIGNED else _load_session
        return asyncio.run(kind(at, settings, window, pid))
    path = at

    async def dial_lane(_address: str, settings: Settings) -> Link:
        return await local_carrier.dial(path, settings)

    with dialling_by(dial_lane):
        return asyncio.run(_load_session(0, settings, window, pid))


async def _load_session(port: int, settings: Settings, window: Window, pid: int) -> Counted:
    router = LoneRouter()
    secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
    facts = ReplicaFacts(REPLICA_ID, f"{HOST}:{port}", max_ongoing_requests=10_000)
    connection = Connection(Peer(facts), settings, secrets)
    connection.users.add(router)
    connection.connect()
    while connection.peer.state is not PeerState.READY:
        await asyncio.wait_for(router.changed.wait(), PATIENCE_S)
        router.changed.clear()

    async def call(_: object) -> None:
        delivery = router.new_delivery(RequestFields(ENVELOPE, VALUE, "id"))
        one = delivery.call
        assert delivery.send(connection, is_new=True)
        await one.wait_done()
        _check(joined(one.result()))

    try:
        return await _loaded(call, window, pid)
    finally:
        await connection.aclose()


async def _load_plain(port: int, settings: Settings, window: Window, pid: int) -> Counted:
    request = CallRequest(payload=VALUE, request_serializer="noop").SerializeToString()
    async with open_channel(f"{HOST}:{port}", settings) as channel:
        rpc = channel.unary_unary(METHOD)

        async def call(_: object) -> None:
            nonce = os.urandom(16).hex()
            proof = sign_call(SECRET, METHOD, REPLICA_ID, request, nonce, time.time())
            _check((await rpc(request, metadata=(("authorization", proof),)))[2:])

        return await _loaded(call, window, pid)


async def _loaded(call: Callable[[Any], Awaitable[None]], window: Window, pid: int) -> Counted:
    await call(None)  # connects
    return await run_in_loop(call, window, [pid])


def _check(answer: bytes) -> None:
    if answer != VALUE:
        raise ValueError("a wrong answer")
