"""A process with replicas: real servers for gRPC and for the lane, with an echo behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from bench.growth.server import allow_open_files
from bench.stand_ins.echo import HOST, SECRET, Echo
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets

__all__ = ["Doors", "replica_name", "run_replicas"]

MAX_ONGOING_REQUESTS = 100
FILES_BESIDE = 256

Doors = tuple[str, str]
"""Where a replica is reached: "host:port" for gRPC, and the path of its socket."""


def replica_name(number: int) -> str:
    """The id of one of them."""
    return f"replica-{number}"


def run_replicas(
    pipe: Pipe, count: int, folder: str, files: int, ports: Sequence[int] = ()
) -> None:
    """Child process: say that it is there; when told to, start the replicas and send their doors.

    Args:
        pipe: Told "start" and, to end, "stop"; it also ends when nobody is there.
        count: How many.
        folder: For their sockets; those of replicas that were killed are replaced.
        files: Open files that it needs beside those of its own.
        ports: Of each; any if none is named.
    """
    allow_open_files(FILES_BESIDE + 2 * count + files)
    asyncio.run(_run(pipe, Path(folder), ports or [0] * count))


async def _run(pipe: Pipe, folder: Path, ports: Sequence[int]) -> None:
    loop = asyncio.get_running_loop()
    replicas = [_Replica(number, folder, port) for number, port in enumerate(ports)]
    pipe.send(None)
    try:
        while await loop.run_in_executor(None, pipe.recv) != "stop":
            pipe.send([await replica.start() for replica in replicas])
    except EOFError:
        pass  # nobody is there any more
    await asyncio.gather(*(replica.stop() for replica in replicas))


class _Replica:
    def __init__(self, number: int, folder: Path, port: int) -> None:
        echo: Any = Echo(MAX_ONGOING_REQUESTS)
        settings = Settings(min_port=port, max_port=port)
        self._path = folder / replica_name(number)
        self._server = ReplicaServer(
            replica_id=replica_name(number),
            secrets=ClusterSecrets(lambda: (SECRET,), (SECRET,)),
            settings=settings,
            dispatcher=echo,
        )
        self._lane = LocalServer(self._server.host, settings)

    async def start(self) -> Doors:
        self._path.unlink(missing_ok=True)  # of one that was killed
        self._lane.start(str(self._path))
        return f"{HOST}:{await self._server.start(HOST)}", str(self._path)

    async def stop(self) -> None:
        await self._lane.stop()
        await self._server.stop(1.0)
