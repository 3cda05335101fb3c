"""How connections and memory grow with the number of replicas a process calls.

One process has all the servers; for each number of replicas a fresh process has a caller's real
`ConnectionPool`, heartbeats included, with one session over gRPC to each of them, as if they were
on other nodes. All numbers are of the calling process, and are what comes on top of a first
connection, which also starts gRPC itself, unless their names say otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any
from unittest import mock

from bench.growth.routing import Row
from bench.growth.server import (
    Usage,
    allow_open_files,
    answer_commands,
    run_servers,
)
from bench.stand_ins.echo import HOST, SECRET
from bench.stand_ins.lone_router import LoneRouter
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.routing.peer import PeerState, ReplicaFacts

__all__ = ["CONNECTIONS", "measure_connections"]

CONNECTIONS = (1, 10, 100, 500)
PATIENCE_S = 30.0
ROUNDS = 5
IDLE_S = 5.0
"""An idle session is asked for life every fifth heartbeat, and HTTP/2 pings every 5 s."""
FILES_PER_CONNECTION = 2
FILES_BESIDE = 256
ENVELOPE = Envelope("__call__", "noop", "noop", False, "/", "default")


def measure_connections() -> list[Row]:
    """Open one number of connections after the other; then let all of them idle together."""
    most = max(CONNECTIONS)
    processes = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        # A listening socket and, from each of the callers, a session.
        files = FILES_BESIDE + most + sum(CONNECTIONS) * FILES_PER_CONNECTION
        server = stack.enter_context(_child(processes, run_servers, most + 1, files))
        ports = _answer(server)
        server_before = _usage(server)
        rows: list[Row] = []
        callers: dict[int, Pipe] = {}
        for count in CONNECTIONS:
            caller = stack.enter_context(_child(processes, _run_caller, ports[: count + 1]))
            rows += [{"name": n, "x": count, "value": v, "unit": u} for n, v, u in _answer(caller)]
            callers[count] = caller
        server_after = _usage(server)
        idle_from = {count: _usage(caller) for count, caller in callers.items()}
        time.sleep(IDLE_S)  # the length of the window that is measured
        idle = {
            c: (_usage(caller).cpu_s - idle_from[c].cpu_s) / IDLE_S for c, caller in callers.items()
        }
        server_idle = (_usage(server).cpu_s - server_after.cpu_s) / IDLE_S
        rows += [
            {"name": "CPU of idle connections", "x": count, "value": share * 1e3, "unit": "ms/s"}
            for count, share in idle.items()
        ]
        for count, caller in callers.items():
            caller.send("stop")
            closed_ms = _answer(caller)
            rows.append(
                {"name": "all connections closed", "x": count, "value": closed_ms, "unit": "ms"}
            )
    sessions = sum(count + 1 for count in CONNECTIONS)
    session_kib = (server_after.rss_kib - server_before.rss_kib) / sessions
    return [
        *rows,
        {"name": "server: memory per session", "x": sessions, "value": session_kib, "unit": "KiB"},
        {
            "name": "server: CPU of idle sessions",
            "x": sessions,
            "value": server_idle * 1e3,
            "unit": "ms/s",
        },
    ]


@contextlib.contextmanager
def _child(processes: Any, target: Any, *args: Any) -> Iterator[Pipe]:
    ours, theirs = processes.Pipe()
    process = processes.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()  # it ends when it finds nobody there
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _answer(pipe: Pipe) -> Any:
    """What a child says next.

    Raises:
        TimeoutError: It says nothing.
        RuntimeError: It ended; its traceback is on stderr.
    """
    if not pipe.poll(PATIENCE_S):
        raise TimeoutError(f"no answer of a measuring process within {PATIENCE_S} s")
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a measuring process ended early; see its traceback") from None


def _usage(pipe: Pipe) -> Usage:
    pipe.send("usage")
    usage: Usage = _answer(pipe)
    return usage


# ---------------------------------------------------------------- the calling process


def _run_caller(pipe: Pipe, ports: list[int]) -> None:
    """Child process: connect to every port, send the rows, answer commands, close."""
    allow_open_files(FILES_BESIDE + len(ports) * FILES_PER_CONNECTION)
    asyncio.run(_call_all(pipe, ports))


async def _call_all(pipe: Pipe, ports: list[int]) -> None:
    with mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)):
        pool = ConnectionPool(Settings())
    router = LoneRouter()
    connections = [
        pool.acquire(
            ReplicaFacts(f"replica-{n}", f"{HOST}:{port}", max_ongoing_requests=100), router
        )
        for n, port in enumerate(ports)
    ]
    first, others = connections[:1], connections[1:]
    await _open(first, router)
    await _call_each(first, router)
    pipe.send(await _measure(others, router))
    await answer_commands(pipe)
    begin = time.perf_counter()
    await pool.aclose()
    pipe.send((time.perf_counter() - begin) * 1e3)


async def _measure(
    connections: list[Connection], router: LoneRouter
) -> list[tuple[str, float, str]]:
    before, count = Usage.now(), len(connections)
    begin, cpu_from_s = time.perf_counter(), time.process_time()
    await _open(connections, router)
    open_s, open_cpu_s = time.perf_counter() - begin, time.process_time() - cpu_from_s
    await _call_each(connections, router)  # the first ones carry the envelope
    times: list[float] = []
    cpu_from_s = time.process_time()
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        await _call_each(connections, router)
        times.append(time.perf_counter() - begin)
    cpu_s = (time.process_time() - cpu_from_s) / ROUNDS
    after = Usage.now()
    return [
        ("all connections opened", open_s * 1e3, "ms"),
        ("CPU of opening one connection", open_cpu_s / count * 1e3, "ms"),
        ("memory per connection", (after.rss_kib - before.rss_kib) / count, "KiB"),
        ("open files per connection", (after.open_files - before.open_files) / count, ""),
        ("sockets per connection", (after.sockets - before.sockets) / count, ""),
        ("threads of the process", after.threads, ""),
        ("one call to each, all at once", statistics.median(times) * 1e3, "ms"),
        ("CPU of one call to each, per call", cpu_s / count * 1e6, "µs"),
    ]


async def _open(connections: list[Connection], router: LoneRouter) -> None:
    for connection in connections:
        connection.connect()

    async def until_ready() -> None:
        while not all(connection.peer.state is PeerState.READY for connection in connections):
            router.changed.clear()
            await router.changed.wait()

    await asyncio.wait_for(until_ready(), PATIENCE_S)


async def _call_each(connections: list[Connection], router: LoneRouter) -> None:
    calls = []
    for connection in connections:
        delivery = router.new_delivery(RequestFields(ENVELOPE, b"x" * 100, "request"))
        calls.append(delivery.call)
        assert delivery.send(connection)
    for call in calls:
        await asyncio.wait_for(call.wait_done(), PATIENCE_S)
        call.result()
