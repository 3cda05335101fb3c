"""A replica under attack: the real server and the real dispatcher in a process of its own.

`attacked` starts it; `Attacked.state` says what it holds. The user's class has three methods:
`echo`, `hold`, which waits until it is cancelled, and `pour`, a generator without an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import psutil

from serve_grpc.config import Settings

__all__ = ["MAX_ONGOING_REQUESTS", "Attacked", "State", "attacked", "silent_connections"]

MAX_ONGOING_REQUESTS = 100
ITEM = bytes(64 * 1024)
STOP_S = 20.0
WATCH_S = 0.005


@dataclass(frozen=True)
class State:
    """What the replica holds, and the worst that happened since the last look.

    Attributes:
        rss_mib, most_rss_mib: Resident memory now, and the most of it.
        handlers, most_handlers: User code that runs now, and the most of it.
    """

    rss_mib: float
    most_rss_mib: float
    files: int
    sessions: int
    unproven: int
    handlers: int
    most_handlers: int
    calls: int


class Attacked:
    """A running replica. `port` is where it listens, `pid` its process."""

    def __init__(self, pipe: Pipe, process: Any) -> None:
        self._pipe = pipe
        self.pid: int = process.pid
        self.port: int = pipe.recv()

    async def state(self) -> State:
        """Ask it."""
        return await asyncio.get_running_loop().run_in_executor(None, self._ask)

    def _ask(self) -> State:
        self._pipe.send("state")
        assert self._pipe.poll(60), "the replica does not answer"
        state: State = self._pipe.recv()
        return state


@contextlib.contextmanager
def attacked(
    settings: Settings | None = None, limits: dict[str, float] | None = None
) -> Iterator[Attacked]:
    """A replica in a process of its own.

    Args:
        settings: Its settings.
        limits: Constants of serve_grpc to change there, "module.NAME" to value: shorter times.
    """
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(
        target=_run, args=(theirs, settings or Settings(), limits or {}), daemon=True
    )
    process.start()
    theirs.close()
    try:
        yield Attacked(ours, process)
    finally:
        ours.close()
        process.join(STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def silent_connections(port: int, first: bytes, count: int) -> Iterator[Callable[[], float]]:
    """So many connections that send `first` and no more, from a process of their own.

    Yields:
        Waits until all of them were closed by the other side; after how many seconds that was.
    """
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_be_silent, args=(theirs, port, first, count), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(60)
    assert ours.recv() == "open"

    def closed() -> float:
        assert ours.poll(60), "some are still open"
        seconds: float = ours.recv()
        return seconds

    try:
        yield closed
    finally:
        ours.close()
        process.kill()
        process.join()


def _be_silent(pipe: Pipe, port: int, first: bytes, count: int) -> None:
    peers = selectors.DefaultSelector()
    begin = time.monotonic()
    for _ in range(count):
        peer = socket.create_connection(("127.0.0.1", port))
        if first:
            peer.sendall(first)
        peers.register(peer, selectors.EVENT_READ)
    pipe.send("open")
    while peers.get_map():
        for key, _ in peers.select():
            try:
                is_open = bool(key.fileobj.recv(4096))  # type: ignore[union-attr]
            except ConnectionError:
                is_open = False
            if not is_open:
                peers.unregister(key.fileobj)
    pipe.send(time.monotonic() - begin)


# ------------------------------------------------------------ the process


def _run(pipe: Pipe, settings: Settings, limits: dict[str, float]) -> None:
    for name, value in limits.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(f"serve_grpc.{module}"), constant, value)
    logging.disable()  # a flood would be mostly of the access log's lines
    asyncio.run(_serve(pipe, settings))


class _Users:
    """The user's code, and what runs of it."""

    def __init__(self) -> None:
        self.running = self.most = self.calls = 0

    @contextlib.contextmanager
    def _count(self) -> Any:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
        finally:
            self.running -= 1

    async def echo(self, value: bytes) -> bytes:
        with self._count():
            return value

    async def hold(self, _: bytes) -> bytes:
        with self._count():
            await asyncio.Event().wait()
            return b""

    async def pour(self, _: bytes) -> Any:
        with self._count():
            while True:
                yield ITEM

    def pour_in_thread(self, _: bytes) -> Any:
        with self._count():
            while True:
                yield ITEM


async def _serve(pipe: Pipe, settings: Settings) -> None:
    from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
    from serve_grpc._serve.replicas import UserMethod
    from serve_grpc.replica.dispatcher import ReplicaDispatcher
    from tests.behaviour.serving import serve

    users = _Users()
    adapter = new_replica_adapter(users.echo, max_ongoing_requests=MAX_ONGOING_REQUESTS)
    for method, is_coroutine, in_thread in (
        (users.hold, True, False),
        (users.pour, False, False),
        (users.pour_in_thread, False, True),
    ):
        name = method.__name__
        adapter._methods[name] = UserMethod(name, method, is_coroutine, in_thread)
    server, port, _ = await serve(settings, dispatcher=ReplicaDispatcher(adapter, settings))
    process = psutil.Process()
    most_rss = 0.0

    def rss_mib() -> float:
        return float(process.memory_info().rss) / 2**20

    async def watch() -> None:
        nonlocal most_rss
        while True:
            await asyncio.sleep(WATCH_S)
            most_rss = max(most_rss, rss_mib())

    watching = asyncio.ensure_future(watch())
    pipe.send(port)
    loop = asyncio.get_running_loop()
    while True:
        try:
            await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            break
        now = rss_mib()
        state = State(
            now,
            max(now, most_rss),
            process.num_fds(),
            server.sessions,
            server.host.unproven.count,
            users.running,
            users.most,
            users.calls,
        )
        most_rss = 0.0
        users.most = users.running
        pipe.send(state)
    watching.cancel()
    await server.stop(0)
    await cancel_tasks()
