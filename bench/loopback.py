"""A caller and a replica in one process and on one event loop, with everything real but gRPC.

The router, the connection, both streams with their writers, the dispatcher and the executor are
those of the package; a pair of queues carries the messages in the place of a gRPC call, and Serve's
side is bench/stand_ins.py. One loop for all is what Serve's throughput-optimised flags give.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

import grpc

from bench.stand_ins import ROUTE, cancel_tasks, new_replica_access, new_router, running
from serve_grpc._serve.requests import generate_request_id
from serve_grpc.caller.call import Call
from serve_grpc.caller.router import Router
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.serialization import get_serializer
from serve_grpc.transport.server import SessionStream

__all__ = ["Caller", "loopback"]

SECRET = b"s" * 32
MAX_ONGOING_REQUESTS = 200


class Caller:
    """Makes calls as a handle does, without the handle.

    Args:
        router: Carries them.
        serializer: Name of the serializer, for both directions.
    """

    def __init__(self, router: Router, serializer: str) -> None:
        self._router = router
        self._serializer = get_serializer(serializer)
        self._envelope = Envelope("__call__", serializer, serializer, False, ROUTE, "default")

    async def call(self, *args: Any) -> Any:
        """One call and its answer."""
        router, serializer = self._router, self._serializer
        payload = serializer.dump_request(args, {})
        call = Call(
            RequestFields(self._envelope, payload, generate_request_id()),
            owner=router,
            mailbox=router.mailbox,
            response_loads=serializer.load_response,
            deadline_s=None,
            is_idempotent=False,
            ended=router.tally.ended,
        )
        router.mailbox.run(router.submit, call)
        await call.wait_done()
        return call.result()


@contextlib.asynccontextmanager
async def loopback(serializer: str = "cloudpickle") -> AsyncIterator[Caller]:
    """A caller whose one replica echoes its argument."""

    async def echo(value: Any) -> Any:
        return value

    replica = new_replica_access(echo, max_ongoing_requests=MAX_ONGOING_REQUESTS)
    dispatcher = ReplicaDispatcher(replica, Settings())
    access, manager = new_router()
    with (
        mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)),
        mock.patch(
            "serve_grpc.transport.client.open_channel",
            side_effect=lambda *_: _Channel(lambda context: _session(context, dispatcher)),
        ),
    ):
        router = Router(access, Settings())
        await asyncio.sleep(0)  # it starts in the loop's next turn
        manager._update_running_replicas(running(1, max_ongoing_requests=MAX_ONGOING_REQUESTS))
        caller = Caller(router, serializer)
        await caller.call("the first call opens the session")
        try:
            yield caller
        finally:
            router.close("measured")
            replica._access_log.close()
            await cancel_tasks()


def _session(context: Any, dispatcher: ReplicaDispatcher) -> SessionStream:
    session = ReplicaSession(
        replica_id="replica-0",
        keyring=Keyring((SECRET,)),
        nonce=b"r" * 16,
        epoch=1,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_message_bytes=Settings.max_message_bytes,
    )
    return SessionStream(session, context, dispatcher)


class _Channel:
    """In the place of a `grpc.aio.Channel`."""

    def __init__(self, new_session: Callable[[Any], SessionStream]) -> None:
        self._new_session = new_session

    def stream_stream(self, *_: Any, **__: Any) -> Callable[[], _End]:
        return self._open

    def _open(self) -> _End:
        requests: asyncio.Queue[Any] = asyncio.Queue()
        replies: asyncio.Queue[Any] = asyncio.Queue()
        session = self._new_session(_End(requests, replies))
        return _End(replies, requests, asyncio.ensure_future(session.run()))

    async def close(self) -> None:
        """Nothing to close."""


class _End:
    """One end of a stream, in the place of a gRPC call or of a servicer's context."""

    def __init__(
        self,
        incoming: asyncio.Queue[Any],
        outgoing: asyncio.Queue[Any],
        handler: asyncio.Future[None] | None = None,
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._handler = handler  # an event loop holds its tasks weakly

    async def read(self) -> Any:
        return await self._incoming.get()

    async def write(self, message: bytes) -> None:
        self._outgoing.put_nowait(message)

    def cancel(self) -> None:
        self._outgoing.put_nowait(grpc.aio.EOF)
