"""A process with sessions: those of one caller to many replicas, or of many callers to one.

The pools and connections are the package's own, heartbeats included; who uses them stands in for a
router. Sessions of the lane are dialled to the path of a socket, those of gRPC to an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from unittest import mock

from bench.growth.server import allow_open_files
from bench.idle_sessions.processes import PATIENCE_S
from bench.idle_sessions.replicas import Doors, replica_name
from bench.stand_ins.echo import SECRET
from bench.stand_ins.lone_router import LoneRouter
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.carriers.local import dial as local_carrier
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.routing.peer import PeerState, ReplicaFacts

__all__ = ["LANE", "facts_of", "over", "run_callers"]

LANE = "local"
FILES_PER_SESSION = 2
FILES_BESIDE = 256
TOGETHER = 50
"""Sessions that are opened at a time."""
ENVELOPE = Envelope("__call__", "noop", "noop", False, "/", "default")


def facts_of(doors: Doors, carrier: str, number: int = 0) -> ReplicaFacts:
    """What a caller knows of a replica that it is to reach over one carrier."""
    address, path = doors
    where = path if carrier == LANE else address
    return ReplicaFacts(replica_name(number), where, max_ongoing_requests=100)


@contextlib.contextmanager
def over(carrier: str) -> Iterator[mock.Mock]:
    """Sessions that are opened meanwhile go over this carrier; gives what reads the secret."""
    known = mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,))
    dialled = dialling_by(local_carrier.dial) if carrier == LANE else contextlib.nullcontext()
    logging.getLogger(LOGGER_NAME).setLevel(logging.ERROR)  # not that replicas are away
    with known as read, dialled:
        yield read


def run_callers(pipe: Pipe, replicas: list[Doors], callers: int, carrier: str) -> None:
    """Child process: open the first session and say so, then do what it is told, and say so.

    Args:
        pipe: Told "open" for all other sessions, "collect" for a run of the garbage collector,
            "close".
        replicas: Each caller has a session to each of them.
        callers: How many.
        carrier: Of all sessions.
    """
    allow_open_files(FILES_BESIDE + len(replicas) * callers * FILES_PER_SESSION)
    with over(carrier):
        asyncio.run(_run(pipe, replicas, callers, carrier))


async def _run(pipe: Pipe, replicas: list[Doors], callers: int, carrier: str) -> None:
    await _Callers(replicas, callers, carrier).run(pipe)


class _Callers:
    def __init__(self, replicas: list[Doors], callers: int, carrier: str) -> None:
        self._router = LoneRouter()
        self._pools = [ConnectionPool(Settings()) for _ in range(callers)]
        facts = [facts_of(doors, carrier, number) for number, doors in enumerate(replicas)]
        self._connections = [
            pool.acquire(one, self._router) for pool in self._pools for one in facts
        ]

    async def run(self, pipe: Pipe) -> None:
        loop = asyncio.get_running_loop()
        await self._open(self._connections[:1])
        pipe.send(None)
        while True:
            try:
                command = await loop.run_in_executor(None, pipe.recv)
            except EOFError:
                return
            begin = time.perf_counter()
            if command == "open":
                for at in range(1, len(self._connections), TOGETHER):
                    await self._open(self._connections[at : at + TOGETHER])
            elif command == "collect":
                gc.collect()
            else:
                await asyncio.gather(*(pool.aclose() for pool in self._pools))
            pipe.send(time.perf_counter() - begin)

    async def _open(self, connections: list[Connection]) -> None:
        """Open sessions, and make a call over each."""
        for connection in connections:
            connection.connect()
        await asyncio.wait_for(self._until_ready(connections), PATIENCE_S)
        calls = []
        for connection in connections:
            delivery = self._router.new_delivery(RequestFields(ENVELOPE, b"x" * 100, "request"))
            assert delivery.send(connection)
            calls.append(delivery.call)
        for call in calls:
            await asyncio.wait_for(call.wait_done(), PATIENCE_S)
            call.result()

    async def _until_ready(self, connections: list[Connection]) -> None:
        while not all(connection.peer.state is PeerState.READY for connection in connections):
            self._router.changed.clear()
            await self._router.changed.wait()
