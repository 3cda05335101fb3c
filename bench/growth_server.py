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

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.config import Settings
from serve_grpc.protocol.replica import Arrival
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.server import PlainCall, ReplicaServer, SessionStream

__all__ = ["HOST", "SECRET", "Usage", "allow_open_files", "answer_commands", "run_servers"]

HOST = "127.0.0.1"
SECRET = b"s" * 32
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


class _Echo:
    """A `Dispatcher` that answers each request with its payload, at once."""

    def on_arrival(self, stream: SessionStream, arrival: Arrival) -> None:
        for request in arrival.requests:
            stream.session.reply(request.id, Reply.RESULT, bytes(request.payload))
        stream.kick()

    def on_session_closed(self, stream: SessionStream, call_ids: list[int]) -> None:
        """Nothing is kept of a session."""

    def on_plain_call(self, call: PlainCall) -> None:
        call.end(Error(code=Error.INTERNAL, message="no plain calls here"))

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """Nothing is kept of plain calls."""

    def ongoing(self) -> int:
        return 0

    def max_ongoing_requests(self) -> int:
        return MAX_ONGOING_REQUESTS

    def standby(self) -> int:
        return 0


def run_servers(pipe: Pipe, count: int, open_files: int) -> None:
    """Child process: start `count` servers, send their ports, answer commands.

    Replica `n` of the list is called "replica-n".
    """
    allow_open_files(open_files)
    asyncio.run(_run_servers(pipe, count))


async def _run_servers(pipe: Pipe, count: int) -> None:
    echo: Any = _Echo()
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
