"""The session to one replica: opened when first needed, watched, opened again when lost.

Lives on the transport's loop. Events of calls go to the router that sent them; what concerns the
replica itself (state, load, room) is written on its `Peer`. Invariant: a call that was sent ends
in exactly one of `on_reply` (with its last event), `on_rejected`, `on_lost`, or its own cancel;
whatever happens to one of them, the others get theirs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import time
from typing import Protocol

import ray

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.allow_list import AllowList, check_call, narrowed
from serve_grpc.caller.call import Call
from serve_grpc.caller.events import hand_out, hand_out_lost
from serve_grpc.caller.lending import Lender, Loan
from serve_grpc.caller.penalty import Penalty
from serve_grpc.caller.trouble import Trouble
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.payload import Payload, refs_of
from serve_grpc.protocol.caller import CallerSession, Envelope, Received
from serve_grpc.protocol.handshake import NONCE_BYTES, SessionState
from serve_grpc.routing.peer import Peer, PeerState
from serve_grpc.transport.client import ClientStream
from serve_grpc.transport.mailbox import mailbox_of
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.traffic import Traffic

__all__ = ["BEATS_PER_INTERVAL", "Connection", "ConnectionOwner"]

logger = logging.getLogger(LOGGER_NAME)

CONNECT_TIMEOUT_S = 10.0
PREFERRED_WAIT_S = 1.0
"""Calls that prefer a replica wait this long for its first session before they go elsewhere."""
RECONNECT_S = (0.1, 2.0)
BEATS_PER_INTERVAL = 4
IDLE_PING_INTERVALS = 5
"""A session without calls is asked for life this many times less often."""
SUSPECT_AFTER_INTERVALS = 1.25
"""How long an answer may take. With the interval of silence before the question, and a beat for
each of both to be noticed, no call is sent to a replica that is mute for 2.75 intervals."""
MAX_QUEUED_REQUEST_BYTES = 16 * 1024 * 1024
"""With more than this waiting to be written to one replica, calls go elsewhere or wait; payloads
that are themselves of this order are allowed a few (`Outbox.is_clogged`)."""


class ConnectionOwner(Protocol):
    """A router that sends calls over a connection."""

    def on_reply(self, call: Call, kind: int, payload: Payload, error: Error | None) -> None:
        """One event of a call."""

    def on_rejected(self, calls: list[Call]) -> None:
        """The replica was full; the calls did not start."""

    def on_lost(self, call: Call, *, may_have_started: bool, reason: str) -> None:
        """The session ended under the call."""

    def on_change(self, connection: Connection) -> None:
        """The peer's state or room may have changed."""


class Connection:
    """A replica, and the session to it if there is one.

    Args:
        peer: Facts, state and load; updated here.
        settings: Limits, heartbeat, TLS.
        secrets: Of the cluster.
        traffic: Where messages and what is in them are counted.
    """

    def __init__(
        self,
        peer: Peer,
        settings: Settings,
        secrets: ClusterSecrets,
        traffic: Traffic | None = None,
    ) -> None:
        self.peer = peer
        self.owners: set[ConnectionOwner] = set()
        self.penalty = Penalty(peer, self._tell)
        self._settings = settings
        self._secrets = secrets
        self._is_secret_doubted = False
        self._traffic = traffic or Traffic()
        self._loop = asyncio.get_running_loop()
        self._mailbox = mailbox_of(self._loop)
        self._session: CallerSession[Call] | None = None
        self._stream: ClientStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.trouble = Trouble(peer)
        self._is_member = ray.is_initialized()
        self._received_s = 0.0
        self._ping_number = 0
        self._pinged_s: float | None = None
        self._is_retired = False
        self._lender = Lender(peer.facts)

    def __repr__(self) -> str:
        return f"<Connection {self.peer!r} {self._session!r}>"

    # ------------------------------------------------------------ opening and closing

    def connect(self) -> None:
        """Open the session if there is none."""
        if self.peer.state is not PeerState.IDLE or self._is_retired:
            return
        self.peer.state = PeerState.CONNECTING
        self._connect()

    def _connect(self) -> None:
        waiting = self._secrets.refresh(is_doubted=self._is_secret_doubted)
        self._is_secret_doubted = False
        if waiting is None:
            self._open()
        else:
            waiting.add_done_callback(lambda _: self._open())

    def _open(self) -> None:
        if self._is_retired:
            return
        if not self._secrets.keyring:
            self._on_closed("the secret of the Ray cluster is not known")
            return
        self._session = CallerSession(
            replica_id=self.peer.facts.replica_id,
            secret=self._secrets.keyring.current,
            nonce=os.urandom(NONCE_BYTES),
            max_message_bytes=self._settings.max_message_bytes,
        )
        self._stream = ClientStream(
            self._session,
            self.peer.facts.address,
            self._settings,
            on_message=lambda data: self._mailbox.enter(self._on_message, data),
            on_closed=lambda reason: self._mailbox.enter(self._on_closed, reason),
            traffic=self._traffic,
        )
        self._set_timer(min(PREFERRED_WAIT_S, CONNECT_TIMEOUT_S), self._on_slow)
        self._stream.start()

    def _on_slow(self) -> None:
        assert self._stream is not None
        self.peer.state = PeerState.LOST
        self.trouble.on_slow(PREFERRED_WAIT_S)
        reason = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        cancel = functools.partial(self._stream.cancel, reason)
        self._set_timer(CONNECT_TIMEOUT_S - PREFERRED_WAIT_S, cancel)
        self._tell()

    def _set_timer(self, delay_s: float, callback: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._mailbox.call_later(delay_s, callback)  # type: ignore[arg-type]

    def retire(self) -> None:
        """The replica is no longer in the control plane's set: close once its calls are over."""
        self._is_retired = True
        self.peer.state = PeerState.GONE
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.peer.state is PeerState.GONE and not (self._session and self._session.calls):
            self.penalty.close()
            if self._timer is not None:
                self._timer.cancel()
            if self._stream is not None:
                self._stream.cancel()

    async def aclose(self) -> None:
        """Close now; calls that still run are lost."""
        self.retire()
        if self._stream is not None:
            self._stream.cancel()
            await self._stream.wait_closed()

    def _on_closed(self, reason: BaseException | str) -> None:
        session, self._session, self._stream = self._session, None, None
        if self._timer is not None:
            self._timer.cancel()
        lost = session.close() if session is not None else []
        self.peer.in_flight = self.peer.reported = 0
        if self.peer.state is not PeerState.GONE:
            self._reconnect_later(reason)
        hand_out_lost(lost, str(reason))
        self._tell()

    def _reconnect_later(self, reason: BaseException | str) -> None:
        self.peer.state = PeerState.LOST
        if isinstance(reason, asyncio.CancelledError) or self._has_left_the_cluster:
            return  # this loop ends, or this process: there is nobody to come back for
        first, longest = RECONNECT_S
        pause = min(longest, first * 2 ** min(self.trouble.times, 10))
        self._is_secret_doubted = self.trouble.on_lost(reason)
        # Jitter, so that the callers of a replica that comes back do not come all at once.
        self._set_timer(pause * random.uniform(0.5, 1.5), self._try_again)

    @property
    def _has_left_the_cluster(self) -> bool:
        return self._is_member and not ray.is_initialized()

    def _try_again(self) -> None:
        if self.peer.state is PeerState.LOST and not self._has_left_the_cluster:
            self._connect()

    # ------------------------------------------------------------ calls

    @property
    def takes_calls(self) -> bool:
        """Whether a call may be sent now."""
        peer = self.peer
        return (peer.has_room or peer.has_standby_room) and self.takes_bytes

    @property
    def is_open(self) -> bool:
        """Whether a call may be sent that the replica is to decide on, full or not."""
        session = self._session
        return session is not None and session.state is SessionState.OPEN and self.takes_bytes

    @property
    def is_down(self) -> bool:
        """Whether there is no session, and none is being opened now."""
        return self._stream is None and self.peer.state is not PeerState.CONNECTING

    @property
    def takes_bytes(self) -> bool:
        """Whether what waits to be written leaves space for one more call."""
        session = self._session
        return session is not None and not session.outbox.is_clogged(MAX_QUEUED_REQUEST_BYTES)

    @property
    def serializers(self) -> AllowList:
        """Those that both the replica and this process allow."""
        return narrowed(self.peer.facts.serializers, self._settings.serializers)

    def check_serializers(self, envelope: Envelope) -> None:
        """Refuse a call that uses others.

        Raises:
            SerializationError: As of `check_call`.
        """
        facts = self.peer.facts
        check_call(
            envelope.request_serializer,
            envelope.response_serializer,
            process=self._settings.serializers,
            deployment=facts.serializers,
            name=facts.deployment,
        )

    @property
    def peer_max_message_bytes(self) -> int:
        """Largest request the replica takes."""
        assert self._session is not None
        return self._session.peer_max_message_bytes

    def send(self, call: Call, *, is_new: bool = False) -> int:
        """Queue a call; returns its id for `cancel` and `grant`.

        Only while the peer has room and the connection takes bytes.

        Args:
            call: What to send.
            is_new: Whether it comes straight from its caller; one that had to wait is sent while a
                message of the replica is read, and more may follow it.
        """
        assert self._session is not None
        assert self._stream is not None
        session = self._session
        call_id = session.request(call, call.fields)
        if refs := refs_of(call.fields.payload):
            call.loan = call.loan or Loan(refs)
            call.loan.is_sent(self._lender, session.epoch, call_id)
        self.peer.on_sent()
        self._traffic.frames_sent += 1
        # The only call has no company to wait for; where there are more, more are to be expected.
        self._stream.kick(at_once=is_new and len(session.calls) == 1)
        return call_id

    def was_read(self, call_id: int) -> bool:
        """Whether the replica has read the request, and did not turn it away."""
        return self._session is not None and self._session.was_read(call_id)

    def cancel(self, call_id: int) -> None:
        """Give a sent call up."""
        if self._session is not None and call_id in self._session.calls:
            self._session.cancel(call_id)
            self._after_session_changed()
            if self._stream is not None:
                self._stream.kick()
            self._tell()

    def grant(self, call_id: int, items: int, bytes_: int) -> None:
        """Let a stream go on."""
        if self._session is not None and self._stream is not None:
            self._session.grant(call_id, items, bytes_)
            self._stream.kick()

    def _after_session_changed(self) -> None:
        self.peer.in_flight = len(self._session.calls) if self._session is not None else 0
        self._close_if_done()

    # ------------------------------------------------------------ what the replica says

    def _on_message(self, data: bytes) -> None:
        session = self._session
        assert session is not None
        received: Received[Call] = Received()
        try:
            session.receive(data, received)
        finally:  # what came before the frame that breaks the session holds
            self._received_s = time.monotonic()
            self._pinged_s = None
            self._traffic.frames_received += len(received.events)
            self._update_peer(session, received)
            if received.lent:
                self._lender.borrow(session.epoch, received.lent)
            for call in hand_out(received):
                session.forget(call)
        self._after_session_changed()
        self._tell()
        if self._stream is not None and not self.takes_calls:
            self._stream.kick(at_once=True)  # nothing more can be sent before the next message

    def _update_peer(self, session: CallerSession[Call], received: Received[Call]) -> None:
        peer = self.peer
        if received.opened:
            if self._timer is not None:
                self._timer.cancel()
            self.trouble.on_opened()
            peer.blocked = False
        if received.draining:
            peer.state = PeerState.GONE
        elif session.state is SessionState.OPEN and not self._is_retired:
            peer.state = PeerState.READY
        peer.in_flight = len(session.calls)
        if received.load is not None:
            peer.on_report(received.load, received.standby)
        if received.rejected and not received.slot_free:
            # The load on the message is newer than the rejection: room may have come up since.
            peer.blocked = peer.load >= peer.facts.max_ongoing_requests
        elif received.slot_free or received.events:
            peer.blocked = False

    def _tell(self) -> None:
        for owner in tuple(self.owners):
            try:
                owner.on_change(self)
            except Exception:
                logger.exception("%r could not follow the news of %r", owner, self)

    # ------------------------------------------------------------ heartbeat

    def beat(self, now_s: float) -> None:
        """Ask a silent replica for a sign of life, suspect a mute one; called once a beat."""
        session = self._session
        if session is None or session.state not in (SessionState.OPEN, SessionState.DRAINING):
            return
        interval_s = self._settings.heartbeat_interval_s
        if self._pinged_s is not None:
            if now_s - self._pinged_s >= SUSPECT_AFTER_INTERVALS * interval_s:
                self._suspect()
            return
        patience = 1 if session.calls else IDLE_PING_INTERVALS
        if now_s - self._received_s >= patience * interval_s:
            self._ping_number = self._ping_number % (2**31) + 1
            self._pinged_s = now_s
            session.ping(self._ping_number)
            assert self._stream is not None
            self._stream.kick()

    def _suspect(self) -> None:
        if self.peer.state is PeerState.READY:
            self.peer.state = PeerState.SUSPECT
            logger.warning(
                "replica %s does not answer heartbeats; it gets no new calls until it does",
                self.peer.facts.replica_id,
            )
            self._tell()
