"""The replica's pump: moves a session's messages over its link, and ends links that are misused.

A caller that has not proved itself is read from only while it may be (`entrance.unproven`), one
that says nothing is cut off (`entrance.idle_watch`), and so is one that does not read its refusal.
One that does not read its replies gets no further request read. What requests mean is the
dispatcher's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.cut_off import CutOff
from serve_grpc.carriers.link import Cause, Link, LinkLost
from serve_grpc.carriers.pump import Writer
from serve_grpc.config import LOGGER_NAME
from serve_grpc.entrance.idle_watch import IdleWatch
from serve_grpc.entrance.unproven import UnprovenPeers
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.replica import Arrival, ReplicaSession
from serve_grpc.protocol.wire import MAX_BATCH_BYTES, WireError

__all__ = ["MAX_QUEUED_REPLY_BYTES", "MAX_SILENCE_S", "ReplicaPump", "SessionDispatcher"]

logger = logging.getLogger(LOGGER_NAME)

REFUSAL_S = 5.0
"""For a refusal, and what is queued before it, to leave."""
MAX_SILENCE_S = 300.0
"""A session whose caller says nothing for so long is ended."""
MAX_QUEUED_REPLY_BYTES = 16 * 1024 * 1024
"""A session whose caller does not read its replies gets no further request read, and its streams
are held; replies that are themselves of this order are allowed a few (`Outbox.is_clogged`)."""

_OPENED = (SessionState.OPEN, SessionState.DRAINING)  # looked up once, not for each message
_REFUSED = {
    Refusal.WRONG_REPLICA: Cause.MISDIRECTED,
    Refusal.VERSION: Cause.VERSION,
    Refusal.UNAUTHENTICATED: Cause.UNAUTHENTICATED,
    Refusal.DRAINING: Cause.DRAINING,
    Refusal.PROTOCOL: Cause.INVALID,
}


class SessionDispatcher(Protocol):
    """Who decides what requests mean. All calls come on the link's loop."""

    def on_arrival(self, stream: ReplicaPump, arrival: Arrival) -> None:
        """Requests, cancels and credits of an open session."""

    def on_session_closed(self, stream: ReplicaPump, call_ids: list[int]) -> None:
        """The session is over; the ids are of calls that still ran."""

    def ongoing(self) -> int:
        """Requests running now."""

    def max_ongoing_requests(self) -> int:
        """How many may run at once."""

    def standby(self) -> int:
        """How many more than that a session may send."""


class ReplicaPump:
    """I/O of one session on the replica's side. Lives on the loop of its link.

    Args:
        session: The machine whose outbox is written.
        link: What carries it.
        dispatcher: Who handles requests.
        counters: Shared with the replica's other sessions; whoever replies counts the frames sent.
        unproven: Where the caller is until it has proved itself.
        max_silence_s: After how long without a message the caller is cut off, or up to twice that.
        reread_secrets: Awaited when the caller holds a secret that is not known.
    """

    def __init__(
        self,
        session: ReplicaSession,
        link: Link,
        dispatcher: SessionDispatcher,
        counters: Counters | None = None,
        unproven: UnprovenPeers | None = None,
        max_silence_s: float = MAX_SILENCE_S,
        reread_secrets: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.session = session
        self.counters = counters or Counters()
        self.carrier = link.carrier
        if link.memory is not None:
            session.share(link.memory)
        self._link = link
        self._dispatcher = dispatcher
        self._unproven = UnprovenPeers(MAX_BATCH_BYTES) if unproven is None else unproven
        self._max_silence_s = max_silence_s
        self._reread_secrets = reread_secrets
        self._writer = Writer(session.outbox, link.write, self._stamp, self.counters)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ReplicaPump {self.session!r}>"

    def kick(self) -> None:
        """Tell that the session has something to write."""
        # The reply of the last call that runs has no company to wait for.
        self._writer.kick(at_once=not self.session.ongoing_ids)

    def kick_item(self) -> None:
        """Tell that an item of a stream is to be written."""
        if len(self.session.ongoing_ids) == 1:
            self._writer.kick_item()
        else:  # others fill the message
            self._writer.kick()

    def _stamp(self) -> None:
        # A stamp before the handshake is over would be read by whoever has not proved itself.
        if self.session.state in _OPENED:
            self.session.stamp(self._dispatcher.ongoing(), self._dispatcher.standby())

    async def run(self) -> None:
        """Serve until the caller leaves, is refused or cut off, or until the link is lost.

        Raises:
            asyncio.CancelledError: The caller was cut off, or nothing could be written to it, or
                whoever runs this cancelled it; gRPC does, if a caller is gone.
        """
        try:
            async with CutOff(self._link) as cut_off:
                await self._serve(cut_off)
            if self.session.refusal is not None:
                await self._end_refused()
        except LinkLost as lost:
            logger.debug("the %s link of %r is lost: %s", self.carrier, self.session, lost.reason)
        finally:
            await self._link.close()

    async def refuse(self, reason: Refusal.Reason, text: str) -> None:
        """Instead of `run`, for a session that must not be opened."""
        try:
            # By hand, for no writer runs here that could be in its way.
            self.session.refuse(reason, text)
            await self._link.write(self.session.outbox.take())
            await self._end_refused()
        except LinkLost as lost:
            logger.debug("the %s link of %r is lost: %s", self.carrier, self.session, lost.reason)
        finally:
            await self._link.close()

    async def _serve(self, cut_off: CutOff) -> None:
        loop = asyncio.get_running_loop()
        peer = await self._unproven.enter(cut_off)  # before anything is read (decision 0014)
        idle_watch = IdleWatch(cut_off, self._max_silence_s)
        self._task = asyncio.current_task()  # set first, for a writer that fails ends it
        writing = loop.create_task(self._writer.run())
        writing.add_done_callback(self._on_writer_done)
        try:
            # All in one place, and not a coroutine for each step: this runs for every message.
            while (message := await self._link.read()) is not None:
                idle_watch.messages += 1
                self.counters.messages_received += 1
                self.counters.bytes_received += len(message)
                try:
                    arrival = self.session.receive(message)
                except WireError as error:
                    arrival = self.session.refuse(Refusal.PROTOCOL, str(error))
                if arrival.unknown_key:  # the cluster may have another secret by now
                    if self._reread_secrets is not None:
                        await self._reread_secrets()
                    arrival = self.session.hear_hello_again()
                if arrival.refused:
                    await self._write_refusal(cut_off)
                    return
                if peer.is_unproven and self.session.state is SessionState.OPEN:
                    peer.leave()
                self.counters.frames_received += len(arrival.requests)
                self._dispatcher.on_arrival(self, arrival)
                del arrival, message  # a payload may lie in the caller's memory, who waits for it
                if self.session.outbox.queued_bytes:
                    self._writer.kick()
                if self.session.outbox.is_clogged(MAX_QUEUED_REPLY_BYTES):
                    await self.wait_room()
        finally:
            self._task = None  # what becomes of the writer from here on is nobody's business
            peer.leave()
            idle_watch.close()
            self._dispatcher.on_session_closed(self, self.session.close())
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    def _on_writer_done(self, writing: asyncio.Task[None]) -> None:
        if self._task is None or writing.cancelled():
            return
        error = writing.exception()
        if isinstance(error, LinkLost):
            logger.debug("nothing can be written to %r: %s", self.session, error.reason)
        else:
            logger.error("the writer of %r failed", self.session, exc_info=error)
        self._task.cancel()  # a session without a writer has no use

    async def _write_refusal(self, cut_off: CutOff) -> None:
        # By the writer. A write of our own would have to cancel the writer's, which would be under
        # way all the same; gRPC takes one at a time, and would never send the end of the call.
        loop = asyncio.get_running_loop()
        late = loop.call_later(REFUSAL_S, cut_off.abort, "the refusal was not read")
        self._writer.kick()
        try:
            await self._writer.wait_below(0)
        finally:
            late.cancel()

    async def _end_refused(self) -> None:
        # Who does not look into messages, such as a proxy or its metrics, sees a failure too.
        refusal = self.session.refusal
        assert refusal is not None
        logger.debug("%r is refused: %s", self.session, refusal.message)
        await self._link.abort(_REFUSED[refusal.reason], refusal.message)

    async def wait_room(self) -> None:
        """Return once the caller has read enough of its replies."""
        # While this waits nothing is read, and the window of HTTP/2 stops the caller: no request
        # comes whose reply would have to wait, too.
        # Half, not all: the pipe to the caller must not run dry while the next requests are read.
        while self.session.outbox.is_clogged(MAX_QUEUED_REPLY_BYTES):
            await self._writer.wait_below(self.session.outbox.queued_bytes // 2)

    async def wait_flushed(self) -> None:
        """Return once everything queued is written."""
        await self._writer.wait_below(0)
