"""A channel to one replica and the session stream on it.

gRPC's errors end here: the owner hears `on_message` for each message and `on_closed` once, with
the reason as text. Closing follows the order that leaks nothing in grpc.aio: half-close, cancel
the call, close the channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from serve_grpc.config import Settings
from serve_grpc.protocol.caller import CallerSession, CallT
from serve_grpc.transport.credentials import open_channel
from serve_grpc.transport.stream import Writer
from serve_grpc.transport.traffic import Traffic

__all__ = ["SESSION_METHOD", "ClientStream"]

SESSION_METHOD = "/serve_grpc.v1.Replica/Session"


class ClientStream:
    """I/O of one session. Lives on the event loop it is started on.

    Args:
        session: The machine whose outbox is written.
        address: "host:port" of the replica.
        settings: For TLS.
        on_message: Called with each message of the replica; an exception of it ends the stream.
        on_closed: Called once when the stream has ended, with the reason: a CancelledError if
            neither side ended it, but whoever ends all tasks of the loop.
        traffic: Where messages and bytes are counted.
    """

    def __init__(
        self,
        session: CallerSession[CallT],
        address: str,
        settings: Settings,
        *,
        on_message: Callable[[bytes], None],
        on_closed: Callable[[BaseException | str], None],
        traffic: Traffic,
    ) -> None:
        self._session = session
        self._address = address
        self._settings = settings
        self._on_message = on_message
        self._on_closed = on_closed
        self._traffic = traffic
        self._writer: Writer | None = None
        self._task: asyncio.Task[None] | None = None
        self._write_error: BaseException | None = None
        self._end_reason = ""

    def start(self) -> None:
        """Connect and run in a task of the current loop."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"serve_grpc session to {self._address}"
        )

    def kick(self, *, at_once: bool = False) -> None:
        """Tell that the session has something to write, and whether it may wait for company."""
        if self._writer is not None:
            self._writer.kick(at_once=at_once)

    def cancel(self, reason: str = "closed by the caller") -> None:
        """End the stream; `on_closed` follows, with this reason."""
        self._end_reason = reason
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return when the stream's task is over."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        reason: BaseException | str = "the replica closed the session"
        try:
            await self._pump()
        except asyncio.CancelledError as error:
            reason = _reason(self._write_error) if self._write_error else self._end_reason or error
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
        except Exception as error:
            # A refusal, a bug here, or a peer that breaks the protocol: only this session ends.
            reason = error
        self._on_closed(reason)

    async def _pump(self) -> None:
        channel = open_channel(self._address, self._settings)
        try:
            # None as serializers: bytes in, bytes out, no protobuf object around payloads.
            call = channel.stream_stream(
                SESSION_METHOD, request_serializer=None, response_deserializer=None
            )()
            self._writer = Writer(self._session.outbox, call.write, traffic=self._traffic)
            writing = asyncio.get_running_loop().create_task(self._writer.run())
            writing.add_done_callback(self._on_writer_done)
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    self._traffic.messages_received += 1
                    self._traffic.bytes_received += len(message)
                    self._on_message(message)
                    if self._session.outbox.queued_bytes:
                        self._writer.kick()
                if await call.code() is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(
                        await call.code(),
                        await call.initial_metadata(),
                        await call.trailing_metadata(),
                        details=await call.details(),
                    )
            finally:
                self._writer = None
                writing.cancel()
                call.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        finally:
            await channel.close()

    def _on_writer_done(self, writing: asyncio.Task[None]) -> None:
        # Nobody would read the end of a stream whose writer is gone: end it here.
        if not writing.cancelled() and self._task is not None:
            self._write_error = writing.exception()
            self._task.cancel()


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return repr(error)
