"""The two ends: a replica's server in a process of its own, and a caller's connection.

Both serialize and load as a deployment and a handle do: on the loop, and in a thread from
`ON_LOOP_BYTES` on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

from serve_grpc._generated.replica_pb2 import Error, Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.outcomes import Lost, Outcome, Raised
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.mailbox import mailbox_of
from serve_grpc.payload import ON_LOOP_BYTES
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.routing.peer import Peer, ReplicaFacts
from serve_grpc.serialization import get_serializer
from serve_grpc.shared_memory.blocks import HEAP
from serve_grpc.threads import in_thread

__all__ = ["Caller", "echoing_replica", "serve_for_ever"]

SECRET = b"s" * 32
REPLICA_ID = "a-replica"
LIMIT = 2**31 - 1
SERIALIZER = get_serializer("cloudpickle")
SETTINGS = Settings(max_message_bytes=LIMIT)


def _secrets() -> ClusterSecrets:
    return ClusterSecrets(lambda: (SECRET,), (SECRET,))


async def _load(loads: Any, payload: Any) -> Any:
    if len(payload) <= ON_LOOP_BYTES:
        return loads(payload)
    return await in_thread(loads, payload)


class _Echo:
    """Loads the arguments of each request, and returns the first; of "upload", its length."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def on_arrival(self, stream: Any, arrival: Any) -> None:
        for request in arrival.requests:
            payload, request.payload = request.payload, b""
            work = self._answer(stream, request.id, request.template.method, payload)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, stream: Any, call_id: int, method: str, payload: Any) -> None:
        loading = _load(SERIALIZER.load_request, payload)
        del payload
        (value,), _ = await loading
        if method == "upload":
            value = len(value)
        stream.session.reply(
            call_id,
            Reply.RESULT,
            SERIALIZER.dump_response(value, HEAP if stream.session.caller_reads_buffers else None),
        )
        stream.kick()

    def on_session_closed(self, stream: Any, call_ids: list[int]) -> None:
        """There is one caller."""

    def on_plain_call(self, call: Any) -> None:
        call.end(Error(code=Error.INTERNAL, message="no plain calls here"))

    def on_plain_call_closed(self, call: Any) -> None:
        """Nothing is kept of plain calls."""

    def ongoing(self) -> int:
        return len(self._tasks)

    def max_ongoing_requests(self) -> int:
        return 100

    def standby(self) -> int:
        return 0


async def serve_for_ever() -> None:
    """Serve on a free port, printed to stdout, until stdin ends."""
    server = ReplicaServer(
        replica_id=REPLICA_ID, secrets=_secrets(), settings=SETTINGS, dispatcher=_Echo()
    )
    print(await server.start("127.0.0.1"), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


@contextlib.asynccontextmanager
async def echoing_replica() -> AsyncIterator[tuple[int, int]]:
    """A replica in a process of its own; its port and pid."""
    code = (
        "import asyncio; from bench.grpc_payloads import ends; asyncio.run(ends.serve_for_ever())"
    )
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.stdin.close()
        process.wait()


class _Chooser:
    """Lets each call end with what came of it."""

    def on_sent(self, replica_id: str) -> None:
        """Nothing is counted."""

    on_left = on_sent

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        if error is not None:
            delivery.end(Raised(RuntimeError(f"{error.code} {error}")))

    def on_rejected(self, delivery: Delivery, connection: Connection) -> None:
        delivery.end(Raised(RuntimeError("rejected")))

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        return not delivery.end(Raised(ConnectionError(lost.reason)))

    def on_end(self, delivery: Delivery, outcome: Outcome) -> None:
        """Nothing is kept of a call."""

    def on_change(self, connection: Connection) -> None:
        """There is one replica."""

    def trouble(self) -> str:
        return ""


class Caller:
    """A connection to a replica on `port`. On a running loop."""

    def __init__(self, port: int) -> None:
        facts = {"replica_id": REPLICA_ID, "address": f"127.0.0.1:{port}"}
        peer = Peer(ReplicaFacts(**{"max_ongoing_requests": 100, **facts}))
        self._connection = Connection(peer, SETTINGS, _secrets())
        self._chooser = _Chooser()
        self._connection.users.add(self._chooser)
        self._envelopes = {
            name: Envelope(name, "cloudpickle", "cloudpickle", False, "", "")
            for name in ("echo", "upload")
        }

    async def open(self) -> None:
        """Return when calls can be made."""
        self._connection.connect()
        while not self._connection.peer.has_room:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def call(self, value: Any, method: str = "echo") -> Any:
        """What the replica makes of it."""
        payload = SERIALIZER.dump_request((value,), {}, HEAP)
        fields = RequestFields(self._envelopes[method], payload, "an id")
        del payload
        mailbox = mailbox_of(asyncio.get_running_loop())
        call = Call(fields, mailbox=mailbox, response_loads=SERIALIZER.load_response)
        delivery = Delivery(call, self._chooser)
        assert delivery.send(self._connection, is_new=True)
        del fields, delivery
        return await call

    async def close(self) -> None:
        """End the session."""
        await self._connection.aclose()
