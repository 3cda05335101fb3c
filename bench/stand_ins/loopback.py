"""A caller and a replica in one process and on one event loop, with everything real but gRPC.

The router, the connection, both pumps, the dispatcher and the executor are those of the package;
its in-memory carrier carries the messages, and Serve's side is in `serve.py`. One loop for all
is what Serve's throughput-optimised flags give.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

from bench.stand_ins.serve import ROUTE, cancel_tasks, new_replica_adapter, new_router, running
from serve_grpc._serve.requests import generate_request_id
from serve_grpc.caller.call import Call
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.router import Router
from serve_grpc.carriers.link import Link
from serve_grpc.carriers.loopback import loopback_dial
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.serialization import get_serializer

__all__ = ["SECRET", "Caller", "loopback", "new_session"]

SECRET = b"s" * 32
MAX_ONGOING_REQUESTS = 200


class Caller:
    """Makes calls as a handle does, without the handle.

    Args:
        router: Carries them.
        serializer: Name of the serializer, for both directions.
        bound_to: The only replica that they go to; None for any.
    """

    def __init__(self, router: Router, serializer: str, bound_to: str | None = None) -> None:
        self._bound_to = bound_to
        self._router = router
        self._serializer = get_serializer(serializer)
        self._envelope = Envelope("__call__", serializer, serializer, False, ROUTE, "default")

    async def call(self, *args: Any) -> Any:
        """One call and its answer."""
        router, serializer = self._router, self._serializer
        payload = serializer.dump_request(args, {})
        call = Call(
            RequestFields(self._envelope, payload, generate_request_id()),
            mailbox=router.mailbox,
            response_loads=serializer.load_response,
        )
        router.mailbox.run(router.submit, router.new_delivery(call, bound_to=self._bound_to))
        await call.wait_done()
        return call.result()


@contextlib.asynccontextmanager
async def loopback(serializer: str = "cloudpickle") -> AsyncIterator[Caller]:
    """A caller whose one replica echoes its argument."""

    async def echo(value: Any) -> Any:
        return value

    replica = new_replica_adapter(echo, max_ongoing_requests=MAX_ONGOING_REQUESTS)
    dispatcher = ReplicaDispatcher(replica, Settings())
    adapter, manager = new_router()
    with (
        mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)),
        dialling_by(loopback_dial(lambda link: new_session(link, dispatcher).run())),
    ):
        router = Router(adapter, Settings())
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


def new_session(
    link: Link, dispatcher: ReplicaDispatcher, replica_id: str = "replica-0"
) -> ReplicaPump:
    """A replica's end of a session over `link`."""
    session = ReplicaSession(
        replica_id=replica_id,
        keyring=Keyring((SECRET,)),
        nonce=b"r" * 16,
        epoch=1,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_message_bytes=Settings.max_message_bytes,
    )
    return ReplicaPump(session, link, dispatcher)
