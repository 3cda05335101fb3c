"""What proofs of membership and TLS cost: sessions and signed calls, beside a bare gRPC stream.

    python -m bench.doors

prints one JSON object a line: "door", "name", "x" (calls in flight), "value", "unit". The replica
and the caller are the package's own, in a process each, with an echo in the place of the user's
code and without Serve. All echo 100 bytes; doors take turns, medians of the rounds are given.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import click

from bench.call_owner import CallOwner, Place
from bench.contenders import BARE_STREAM
from bench.door_server import REPLICA_ID, SECRET, certificates, run_server
from bench.floors import Floors
from bench.load import run_in_loop
from bench.window import RAMP, Counted, Window
from serve_grpc._generated.replica_pb2 import CallRequest
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.config import Settings
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.protocol.handshake import sign_call
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.transport.credentials import open_channel
from serve_grpc.transport.mailbox import mailbox_of
from serve_grpc.transport.secrets import ClusterSecrets

__all__ = ["BARE", "doors_of", "without_doors"]

BARE = "bare gRPC stream, no proof"
SESSION = "session, plaintext (as shipped)"
TLS = "session, mutual TLS"
SIGNED = "plain door, each call signed"
IN_FLIGHT = {1: "p50_ms", 100: "calls_per_s"}
ROUNDS = 4
WINDOW_S = 0.25
PATIENCE_S = 20.0
VALUE = b"x" * 100
METHOD = "/serve_grpc.v1.Replica/Call"
ENVELOPE = Envelope("__call__", "noop", "noop", False, "", "")

Row = dict[str, Any]


def doors_of(rows: Iterable[Row]) -> dict[str, list[str]]:
    """By door: calls/s with 100 in flight and p50 of a lone call, as text; of a run's rows."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if "door" in row:
            found[row["door"]].append(f"{row['value']:,.3g} {row['unit']}" if row["x"] == 1 else (
                f"{row['value']:,.0f} {row['unit']}"
            ))  # fmt: skip
    return dict(found)


def without_doors(rows: Iterable[Row]) -> list[Row]:
    """A run's rows that are not of doors."""
    return [row for row in rows if "door" not in row]


def _measure() -> Iterator[Row]:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="doors-"))
        paths = certificates(Path(directory))
        secure = Settings(
            use_tls=True, tls_cert_path=paths[0], tls_key_path=paths[1], tls_ca_path=paths[0]
        )
        ours, theirs = context.Pipe()
        server = context.Process(target=run_server, args=(theirs, secure), daemon=True)
        server.start()
        theirs.close()
        stack.callback(server.join, PATIENCE_S)
        stack.callback(ours.close)
        floors = Floors(is_uvloop=False)
        stack.callback(floors.close)
        client = stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
        plain_port, tls_port = _ports(ours)
        doors: dict[str, Callable[[Window], Counted]] = {
            BARE: lambda window: asyncio.run(floors.measure(BARE_STREAM, VALUE, window)),
            SESSION: lambda window: client.submit(
                _load, SESSION, plain_port, Settings(), window, server.pid
            ).result(),
            TLS: lambda window: client.submit(
                _load, TLS, tls_port, secure, window, server.pid
            ).result(),
            SIGNED: lambda window: client.submit(
                _load, SIGNED, plain_port, Settings(), window, server.pid
            ).result(),
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


def _load(door: str, port: int, settings: Settings, window: Window, pid: int) -> Counted:
    kind = _load_plain if door == SIGNED else _load_session
    return asyncio.run(kind(port, settings, window, pid))


async def _load_session(port: int, settings: Settings, window: Window, pid: int) -> Counted:
    owner = CallOwner()
    secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
    facts = ReplicaFacts(REPLICA_ID, f"127.0.0.1:{port}", max_ongoing_requests=10_000)
    connection = Connection(Peer(facts), settings, secrets)
    connection.owners.add(owner)
    connection.connect()
    mailbox, place = mailbox_of(asyncio.get_running_loop()), Place(owner)
    while connection.peer.state is not PeerState.READY:
        await asyncio.wait_for(owner.changed.wait(), PATIENCE_S)
        owner.changed.clear()

    async def call(_: object) -> None:
        one = Call(
            RequestFields(ENVELOPE, VALUE, "id"),
            owner=owner,
            mailbox=mailbox,
            response_loads=bytes,
            deadline_s=None,
            is_idempotent=False,
        )
        one.place = place
        connection.send(one, is_new=True)
        await one.wait_done()
        _check(joined(one.result()))

    try:
        return await _loaded(call, window, pid)
    finally:
        await connection.aclose()


async def _load_plain(port: int, settings: Settings, window: Window, pid: int) -> Counted:
    request = CallRequest(payload=VALUE, request_serializer="noop").SerializeToString()
    async with open_channel(f"127.0.0.1:{port}", settings) as channel:
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


@click.command(help=__doc__)
def main() -> None:
    for row in _measure():
        click.echo(json.dumps({**row, "value": round(row["value"], 4)}))


if __name__ == "__main__":
    main()
