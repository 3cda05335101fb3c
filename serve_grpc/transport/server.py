"""A replica's gRPC server: the doors and who may use them.

Bytes come in raw on every door of ours, so nothing a stranger sends is decoded before its proof
holds: sessions prove themselves in their handshake, everything else with signed metadata
(`handshake.sign_call`). What requests mean is the dispatcher's business.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serve_grpc._generated.replica_pb2 import DESCRIPTOR, CallReply, CallRequest, Refusal
from serve_grpc.config import Settings
from serve_grpc.protocol.handshake import NONCE_BYTES, SessionState
from serve_grpc.protocol.replica import Arrival, ReplicaSession
from serve_grpc.protocol.wire import MAX_BATCH_BYTES, WireError
from serve_grpc.transport.credentials import bind, largest_message, server_options
from serve_grpc.transport.doorstep import Doorstep
from serve_grpc.transport.ending import ABORT_S, Ending
from serve_grpc.transport.membership import UNAUTHENTICATED, Membership, SignedMetadata
from serve_grpc.transport.plain_call import PlainCall, abort_call
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.silence import Listener
from serve_grpc.transport.status import abort
from serve_grpc.transport.stream import Writer
from serve_grpc.transport.traffic import Traffic

__all__ = ["MAX_QUEUED_REPLY_BYTES", "Dispatcher", "PlainCall", "ReplicaServer", "SessionStream"]

SERVICE = DESCRIPTOR.services_by_name["Replica"].full_name
TRACE_KEYS = ("traceparent", "tracestate")
REFUSAL_S = 5.0
"""For a refusal, and what is queued before it, to leave."""
MAX_SILENCE_S = 300.0
SILENT_HEARTBEATS = 60
"""A session whose caller says nothing for so long, or so many of its heartbeats, is ended."""
MAX_OTHER_CALLS = 2048
"""Calls on their way through all doors beside sessions, strangers among them."""
MAX_QUEUED_REPLY_BYTES = 16 * 1024 * 1024
"""A session whose caller does not read its replies gets no further request read, and its streams
are held; replies that are themselves of this order are allowed a few (`Outbox.is_clogged`)."""

_REFUSED = {
    Refusal.WRONG_REPLICA: grpc.StatusCode.FAILED_PRECONDITION,
    Refusal.VERSION: grpc.StatusCode.UNIMPLEMENTED,
    Refusal.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Refusal.PROTOCOL: grpc.StatusCode.INVALID_ARGUMENT,
}


class Dispatcher(Protocol):
    """Who decides what requests mean. All calls come on the server's loop."""

    def on_arrival(self, stream: SessionStream, arrival: Arrival) -> None:
        """Requests, cancels and credits of an open session."""

    def on_session_closed(self, stream: SessionStream, call_ids: list[int]) -> None:
        """The session is over; the ids are of calls that still ran."""

    def on_plain_call(self, call: PlainCall) -> None:
        """A request through the plain door; answered through the call's methods."""

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """The plain caller went away or was answered."""

    def ongoing(self) -> int:
        """Requests running now."""

    def max_ongoing_requests(self) -> int:
        """How many may run at once."""

    def standby(self) -> int:
        """How many more than that a session may send."""


class SessionStream:
    """I/O of one session on the replica's side.

    `traffic` is shared with the server's other sessions; whoever replies counts the frames sent.
    `doorstep` is where the caller is until it has proved itself. `reread_secrets` is awaited when
    it holds a secret that is not known.
    """

    def __init__(
        self,
        session: ReplicaSession,
        context: Any,
        dispatcher: Dispatcher,
        traffic: Traffic | None = None,
        doorstep: Doorstep | None = None,
        max_silence_s: float = MAX_SILENCE_S,
        reread_secrets: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.session = session
        self.traffic = traffic or Traffic()
        self._doorstep = Doorstep(MAX_BATCH_BYTES) if doorstep is None else doorstep
        self._max_silence_s = max_silence_s
        self._reread_secrets = reread_secrets
        self._context = context
        self._dispatcher = dispatcher
        self._writer = Writer(session.outbox, context.write, self._stamp, self.traffic)

    def kick(self) -> None:
        """Tell that the session has something to write."""
        # The reply of the last call that runs has no company to wait for.
        self._writer.kick(at_once=not self.session.ongoing_ids)

    def _stamp(self) -> None:
        if self.session.state in (SessionState.OPEN, SessionState.DRAINING):
            self.session.stamp(self._dispatcher.ongoing(), self._dispatcher.standby())

    async def run(self) -> None:
        """Read until the caller leaves or breaks the protocol."""
        async with Ending(self._context) as ending:
            await self._run(ending)
        if self.session.refusal is not None:
            await self.end_refused()

    async def _run(self, ending: Ending) -> None:
        loop = asyncio.get_running_loop()
        task = ending.task
        visit = await self._doorstep.enter(ending)
        is_stranger = True
        listener = Listener(ending, self._max_silence_s)
        writing = loop.create_task(self._writer.run())
        # A stream without a writer has no use; the handler ends with it.
        writing.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
        try:
            while (message := await self._context.read()) is not grpc.aio.EOF:
                listener.messages += 1
                self.traffic.messages_received += 1
                self.traffic.bytes_received += len(message)
                try:
                    arrival = self.session.receive(message)
                except WireError as error:
                    arrival = self.session.refuse(Refusal.PROTOCOL, str(error))
                if arrival.unknown_key:
                    if self._reread_secrets is not None:
                        await self._reread_secrets()
                    arrival = self.session.hear_hello_again()
                if arrival.refused:
                    # By the writer: a write of its own that is cancelled would still be under way,
                    # and gRPC takes one at a time; it would never send the end of the call.
                    late = loop.call_later(REFUSAL_S, ending.end, "the refusal was not read")
                    self._writer.kick()
                    try:
                        await self._writer.wait_below(0)
                    finally:
                        late.cancel()
                    return
                if is_stranger and self.session.state is SessionState.OPEN:
                    is_stranger = False
                    visit.leave()
                self.traffic.frames_received += len(arrival.requests)
                self._dispatcher.on_arrival(self, arrival)
                if self.session.outbox.queued_bytes:
                    self._writer.kick()
                if self.session.outbox.is_clogged(MAX_QUEUED_REPLY_BYTES):
                    await self.wait_room()
        finally:
            if is_stranger:
                visit.leave()
            listener.close()
            self._dispatcher.on_session_closed(self, self.session.close())
            await _stop(writing)

    async def end_refused(self) -> None:
        """End the call of a session whose refusal is written."""
        # Who does not look into messages, such as a proxy or its metrics, sees a failure too.
        refusal = self.session.refusal
        assert refusal is not None
        ending = abort(self._context, _REFUSED[refusal.reason], refusal.message)
        await asyncio.wait_for(ending, ABORT_S)  # as in `Ending`, for a peer that does not read

    async def wait_room(self) -> None:
        """Return once the caller has read enough of its replies."""
        while self.session.outbox.is_clogged(MAX_QUEUED_REPLY_BYTES):
            await self._writer.wait_below(self.session.outbox.queued_bytes // 2)

    async def wait_flushed(self) -> None:
        """Return once everything queued is written."""
        await self._writer.wait_below(0)


class ReplicaServer:
    """The server of one replica. Lives on the loop it is started on.

    `traffic` is what went over its sessions until now.

    Args:
        replica_id: Unique id of the replica.
        secrets: Of the cluster.
        settings: Ports, limits, TLS.
        dispatcher: Who handles requests.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        secrets: ClusterSecrets,
        settings: Settings,
        dispatcher: Dispatcher,
    ) -> None:
        self._replica_id = replica_id
        self._secrets = secrets
        self._settings = settings
        self._dispatcher = dispatcher
        self._membership = Membership(secrets, replica_id)
        self._streams: set[SessionStream] = set()
        self.traffic = Traffic()
        self._doorstep = Doorstep(largest_message(settings))
        self._max_silence_s = max(MAX_SILENCE_S, SILENT_HEARTBEATS * settings.heartbeat_interval_s)
        self._epochs = 0
        self._is_draining = False
        self._server = grpc.aio.server(
            options=server_options(settings),
            maximum_concurrent_rpcs=settings.max_connections + MAX_OTHER_CALLS,
            interceptors=[SignedMetadata(self._membership, SERVICE)],
        )
        self._health = health.aio.HealthServicer()
        self._add_doors()

    def __repr__(self) -> str:
        return f"<ReplicaServer of {self._replica_id}, {len(self._streams)} sessions>"

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._streams)

    def _add_doors(self) -> None:
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        # Read by hand, so that a request is read only when there is room for it.
                        "Call": grpc.stream_unary_rpc_method_handler(self._call),
                        "CallStream": grpc.stream_stream_rpc_method_handler(self._call_stream),
                        "Session": grpc.stream_stream_rpc_method_handler(self._session),
                    },
                ),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self, host: str) -> int:
        """Listen on `host`; returns the port.

        Raises:
            RuntimeError: No port of the configured range is free, or TLS files are missing.
        """
        port = self._bind(f"[{host}]" if ":" in host else host)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        return port

    def _bind(self, host: str) -> int:
        low, high = self._settings.min_port, self._settings.max_port
        if not low:
            return bind(self._server, f"{host}:0", self._settings)
        ports = list(range(low, high + 1))
        random.shuffle(ports)
        for port in ports:
            try:
                return bind(self._server, f"{host}:{port}", self._settings)
            except RuntimeError as error:
                if "address" not in str(error).lower():
                    raise
        raise RuntimeError(
            f"no free port between SERVE_GRPC_MIN_PORT={low} and SERVE_GRPC_MAX_PORT={high} "
            f"on {host}"
        )

    async def drain(self) -> None:
        """Tell every caller to go elsewhere; running requests go on."""
        self._is_draining = True
        await self._health.enter_graceful_shutdown()
        for stream in self._streams:
            stream.session.drain()
            stream.kick()

    async def stop(self, grace_s: float) -> None:
        """Write what is queued, then close every connection within `grace_s` seconds."""
        flushes = [asyncio.ensure_future(stream.wait_flushed()) for stream in self._streams]
        if flushes:
            _, late = await asyncio.wait(flushes, timeout=grace_s)
            for flush in late:
                flush.cancel()
        await self._server.stop(0)

    # ------------------------------------------------------------ the doors

    async def _session(self, _: object, context: Any) -> None:
        if len(self._streams) - self._doorstep.strangers >= self._settings.max_connections:
            text = f"SERVE_GRPC_MAX_CONNECTIONS={self._settings.max_connections} sessions are open"
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        await self._secrets.fresh()
        self._epochs += 1
        session = ReplicaSession(
            replica_id=self._replica_id,
            keyring=self._secrets.keyring,
            nonce=os.urandom(NONCE_BYTES),
            epoch=self._epochs,
            max_ongoing_requests=self._dispatcher.max_ongoing_requests(),
            max_message_bytes=self._settings.max_message_bytes,
        )
        stream = SessionStream(
            session,
            context,
            self._dispatcher,
            self.traffic,
            self._doorstep,
            self._max_silence_s,
            self._secrets.reread,
        )
        if self._is_draining:
            session.refuse(Refusal.DRAINING, "the replica is shutting down")
            await context.write(session.outbox.take())
            await stream.end_refused()
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    async def _call(self, _: object, context: Any) -> bytes:
        call = await self._open_plain(context, is_stream=False)
        try:
            output = await call.next()
            if isinstance(output, bytes):
                return _reply(output)
            assert output is not None, "a unary call ends with a result or an error"
            await abort_call(context, output)
        finally:
            self._dispatcher.on_plain_call_closed(call)

    async def _call_stream(self, _: object, context: Any) -> None:
        call = await self._open_plain(context, is_stream=True)
        try:
            while isinstance(output := await call.next(), bytes):
                await context.write(_reply(output))
                if call.on_taken is not None:
                    call.on_taken(len(output))
            if output is not None:
                await abort_call(context, output)
        finally:
            self._dispatcher.on_plain_call_closed(call)

    async def _open_plain(self, context: Any, *, is_stream: bool) -> PlainCall:
        async with Ending(context) as ending:
            visit = await self._doorstep.enter(ending)
            try:
                data = await context.read()
            finally:
                visit.leave()
        if data is grpc.aio.EOF:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a call has one request")
        method = f"/{SERVICE}/{'CallStream' if is_stream else 'Call'}"
        metadata = context.invocation_metadata()
        if not await self._membership.is_proven(metadata, method, data):
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED)
        try:
            request = CallRequest.FromString(data)
        except DecodeError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a CallRequest: {error}")
        remaining = context.time_remaining()
        trace = {k: v for k, v in metadata or () if k in TRACE_KEYS and isinstance(v, str)}
        call = PlainCall(request, is_stream=is_stream, timeout_s=remaining, trace=trace)
        self._dispatcher.on_plain_call(call)
        return call


async def _stop(writing: asyncio.Task[None]) -> None:
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


def _reply(payload: bytes) -> bytes:
    data: bytes = CallReply(payload=payload).SerializeToString()
    return data
