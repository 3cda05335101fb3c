"""A process with many replica servers, for the growth of connections; and what a process uses.

Each server is the real `ReplicaServer` on a port of its own on loopback, with an echo in the place
of the dispatcher, so no Ray is needed. A child process of the measurement answers two commands:
"usage" with a `Usage`, "stop" by ending; it also ends when the parent is gone.
"""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import psutil

from bench.stand_ins.echo import HOST, SECRET, Echo
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets

__all__ = ["Usage", "allow_open_files", "answer_commands", "run_servers"]

MAX_ONGOING_REQUESTS = 100


@dataclass(frozen=True)
class Usage:
    """What this process uses now.

    Attributes:
        rss_kib: Resident memory.
        cpu_s: CPU time since its start, user and system.
        open_files: File descriptors, sockets among them.
    """

    rss_kib: float
    cpu_s: float
    open_files: int
    sockets: int
    threads: int

    @classmethod
    def now(cls) -> Usage:
        """Look at this process."""
        process = psutil.Process()
        with process.oneshot():
            return cls(
                rss_kib=process.memory_info().rss / 1024,
                cpu_s=time.process_time(),
                open_files=process.num_fds(),
                sockets=len(process.net_connections("tcp")),
                threads=process.num_threads(),
            )


def allow_open_files(count: int) -> None:
    """Raise this process's own limit of file descriptors if it is below `count`.

    Raises:
        RuntimeError: The hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RuntimeError(
            f"{count} file descriptors are needed and the hard limit is {hard}: raise it with "
            "`ulimit -Hn`, or measure fewer connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


async def answer_commands(pipe: Pipe) -> None:
    """Answer "usage" until "stop", or until the parent is gone."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            command = await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            return
        if command == "stop":
            return
        pipe.send(Usage.now())


def run_servers(pipe: Pipe, count: int, open_files: int) -> None:
    """Child process: start `count` servers, send their ports, answer commands.

    Replica `n` of the list is called "replica-n".
    """
    allow_open_files(open_files)
    asyncio.run(_run_servers(pipe, count))


async def _run_servers(pipe: Pipe, count: int) -> None:
    echo: Any = Echo(MAX_ONGOING_REQUESTS)
    secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
    servers = [
        ReplicaServer(
            replica_id=f"replica-{number}", secrets=secrets, settings=Settings(), dispatcher=echo
        )
        for number in range(count)
    ]
    try:
        pipe.send([await server.start(HOST) for server in servers])
        await answer_commands(pipe)
    finally:
        await asyncio.gather(*(server.stop(1.0) for server in servers))
