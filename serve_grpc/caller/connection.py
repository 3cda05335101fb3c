"""The way to one replica: a session opened when first needed, and opened again when lost.

Lives on the transport's loop. What the replica says of calls goes to their deliveries; what
concerns the replica itself (state, load, room) is written on its `Peer`, and its users are told
that there is news. The state moves in `_become` alone, by the table of `routing/peer.py`.
Invariant: a delivery that was sent hears of its end once: by its last reply, by a rejection, or by
the loss of the session; or it was cancelled. Whatever happens to one, the others hear theirs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Protocol

import ray

from serve_grpc.allow_list import AllowList, check_call, narrowed
from serve_grpc.caller.dialling import Dialler
from serve_grpc.caller.events import Carried, hand_out, hand_out_lost, note
from serve_grpc.caller.input_way import InputWay, Sender
from serve_grpc.caller.lending import Lender, Loan
from serve_grpc.caller.reconnects import Reconnects
from serve_grpc.caller.session import Session
from serve_grpc.caller.trouble import Penalty, Trouble
from serve_grpc.carriers.counters import Counters
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.debugging import is_debugged
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.mailbox import mailbox_of
from serve_grpc.payload import Segments, is_stored, refs_of
from serve_grpc.pickling import readable
from serve_grpc.protocol.caller import Envelope, Received
from serve_grpc.routing.peer import Peer, PeerState

__all__ = ["Connection", "ConnectionUser"]

logger = logging.getLogger(LOGGER_NAME)

CONNECT_TIMEOUT_S = 10.0
PREFERRED_WAIT_S = 1.0
"""Calls that prefer a replica wait this long for its first session before they go elsewhere."""
NEVER = float("inf")
MAX_QUEUED_REQUEST_BYTES = 16 * 1024 * 1024
"""With more than this waiting to be written to one replica, calls go elsewhere or wait; payloads
that are themselves of this order are allowed a few (`Outbox.is_clogged`)."""


class ConnectionUser(Protocol):
    """Who sends calls over a connection: a router."""

    def on_change(self, connection: Connection) -> None:
        """The replica's state or room may have changed."""


class Connection:
    """A replica, and the session to it if there is one.

    Args:
        peer: Facts, state and load; updated here.
        settings: Limits, heartbeat, TLS.
        secrets: Of the cluster.
        counters: Where messages and what is in them are counted.
        reconnects: Of the pool.

    Attributes:
        peer: As given.
        users: Who is told of news.
        penalty: What becomes of the replica where it fails its calls.
        trouble: Why there is no session.
        peer_max_message_bytes: Largest request that both sides allow; 0 until the replica told.
        takes_stored: Whether larger ones may go by Ray's object store.
        takes_inputs: Whether arguments may be streams.
        look_s: When a beat is to look at it if no call is on it, on `time.monotonic`.
    """

    def __init__(
        self,
        peer: Peer,
        settings: Settings,
        secrets: ClusterSecrets,
        counters: Counters | None = None,
        reconnects: Reconnects | None = None,
    ) -> None:
        self.peer = peer
        self.users: set[ConnectionUser] = set()
        self.penalty = Penalty(peer, self._tell)
        self.trouble = Trouble(peer, reconnects or Reconnects())
        self.peer_max_message_bytes = 0
        self.takes_stored = self.takes_inputs = False
        self.look_s = NEVER
        self._settings = settings
        self._secrets = secrets
        self._is_secret_doubted = False
        self._counters = counters or Counters()
        self._dialler = Dialler(peer, self._counters)
        self._mailbox = mailbox_of(asyncio.get_running_loop())
        self._session: Session | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_member = ray.is_initialized()
        self._lender = Lender(peer.facts)

    def __repr__(self) -> str:
        return f"<Connection {self.peer!r} {self._session!r}>"

    def _become(self, state: PeerState) -> None:
        before = self.peer.state
        if self.peer.become(state) and is_debugged():
            where = self.peer.facts.replica_id
            note("replica %s: from %s to %s", where, before.value, state.value)

    # ------------------------------------------------------------ opening and closing

    def connect(self) -> None:
        """Open the session if none was needed yet."""
        if self.peer.state is PeerState.IDLE:
            self._become(PeerState.CONNECTING)
            self._connect()

    def _connect(self) -> None:
        waiting = self._secrets.refresh(is_doubted=self._is_secret_doubted)
        self._is_secret_doubted = False
        if waiting is None:
            self._open()
        else:
            # The state may be another one by then; `_open` looks.
            waiting.add_done_callback(lambda _: self._open())

    def _open(self) -> None:
        if self.peer.state is PeerState.GONE:
            return
        if not self._secrets.keyring:
            self._on_closed("the secret of the Ray cluster is not known")
            return
        # In two parts: calls need not wait as long as the dial may take. It goes on beside them.
        self._set_timer(min(PREFERRED_WAIT_S, CONNECT_TIMEOUT_S), self._on_slow)
        self.look_s = 0.0
        self._session = Session(
            self.peer.facts,
            self._settings,
            self._secrets.keyring.current,
            self._counters,
            self._mailbox,
            self._dialler.dial,
            on_message=self._on_message,
            on_closed=self._on_closed,
        )

    def _on_slow(self) -> None:
        assert self._session is not None
        self._become(PeerState.LOST)
        self.trouble.on_slow(PREFERRED_WAIT_S)
        reason = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        cancel = functools.partial(self._session.cancel, reason)
        self._set_timer(CONNECT_TIMEOUT_S - PREFERRED_WAIT_S, cancel)
        self._tell()

    def _set_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._mailbox.call_later(delay_s, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def retire(self) -> None:
        """The replica is no longer in the control plane's set: close once its calls are over."""
        self._become(PeerState.GONE)
        self._close_if_done()

    def _close_if_done(self) -> None:
        # Counted by deliveries: one that has ended is off, even if the replica still runs it.
        if self.peer.state is PeerState.GONE and self.peer.in_flight == 0:
            self.penalty.close()
            self._stop_timer()
            if self._session is not None:
                self._session.cancel()

    async def aclose(self) -> None:
        """Close now; calls that still run are lost."""
        self.retire()
        if (session := self._session) is not None:
            session.cancel()
            await session.wait_closed()

    def _on_closed(self, reason: BaseException | str) -> None:
        # Also without a session, when there was no secret to open one with.
        session, self._session = self._session, None
        self._stop_timer()
        lost = session.machine.close() if session is not None else []
        # Kept, a replica that is reached again would look busy until it reports.
        self.peer.reported = 0
        self.peer.carrier = ""
        if self.peer.state is not PeerState.GONE:
            if session is not None and session.has_failed_on("local"):
                self._dialler.doubt_lane(reason)
            self._reconnect_later(reason)
        # The state is that of afterwards by now: whoever hears of a loss may look for another one.
        hand_out_lost(lost, str(reason))
        self._tell()

    def _reconnect_later(self, reason: BaseException | str) -> None:
        self._become(PeerState.LOST)
        if is_debugged():
            note("replica %s: no session: %s", self.peer.facts.replica_id, reason)
        if isinstance(reason, asyncio.CancelledError) or self._has_left_the_cluster:
            return  # this loop ends, or this process: there is nobody to come back for
        # A cluster that was restarted under us has another secret: read anew for the next try.
        self._is_secret_doubted = self.trouble.on_lost(reason)
        self._set_timer(self.trouble.pause_s(), self._try_again)

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
        return self.peer.state in (PeerState.READY, PeerState.SUSPECT) and self.takes_bytes

    @property
    def is_down(self) -> bool:
        """Whether there is no session, and none is being opened for the first time.

        No session is there either while the secret of the cluster is read.
        """
        return self._session is None and self.peer.state is not PeerState.CONNECTING

    @property
    def takes_bytes(self) -> bool:
        """Whether what waits to be written leaves space for one more call."""
        at = self._session
        return at is not None and not at.machine.outbox.is_clogged(MAX_QUEUED_REQUEST_BYTES)

    @property
    def serializers(self) -> AllowList:
        """Those that both the replica and this process allow."""
        return narrowed(self.peer.facts.serializers, self._settings.serializers)

    def check_serializers(self, envelope: Envelope) -> None:
        """Refuse a call that uses others.

        Raises:
            SerializationError: As of `check_call`.
        """
        facts, process = self.peer.facts, self._settings.serializers
        names = envelope.request_serializer, envelope.response_serializer
        check_call(*names, process=process, deployment=facts.serializers, name=facts.deployment)

    @property
    def max_message_bytes(self) -> int:
        """Largest reply that this side takes."""
        return self._settings.max_message_bytes

    def send(self, carried: Carried, *, is_new: bool = False) -> int:
        """Queue a call; returns its id for `cancel` and `grant`.

        Only while the peer has room and the connection takes bytes. Who gives it has to count the
        call off again (`Peer.in_flight`).

        Args:
            carried: What is told of the call's fate.
            is_new: Whether it comes straight from its caller; one that had to wait is sent while a
                message of the replica is read, and more may follow it.

        Raises:
            ValueError: A text of the call is not valid unicode; nothing was queued.
        """
        session = self._session
        assert session is not None
        machine, fields = session.machine, carried.call.fields
        if in_pieces := type(fields.payload) is Segments:  # not for each call: most are small
            fields.payload = readable(fields.payload, machine.reads_buffers)
        # First, for it may raise: what follows counts the call as sent.
        call_id = machine.request(carried, fields)
        if in_pieces and (refs := refs_of(fields.payload)):
            # One loan for all tries: each replica that may have read the refs is asked about them.
            carried.loan = carried.loan or Loan(refs)
            carried.loan.is_sent(self._lender, machine.epoch, call_id)
            self._counters.stored_sent += is_stored(fields.payload)
        self.peer.on_sent()
        self._counters.frames_sent += 1
        # The only call has no company to wait for, unless its inputs do (`Inputs.on_sent` kicks).
        if not fields.inputs:
            session.kick(at_once=is_new and self.peer.in_flight == 1)
        return call_id

    def inputs_of(self, sender: Sender, call_id: int) -> InputWay:
        """The way of the inputs of a call that was just sent."""
        assert self._session is not None
        return InputWay(sender, call_id, self._session, self._lender, self._counters)

    def was_read(self, call_id: int) -> bool:
        """Whether the replica has read the request, and did not turn it away."""
        return self._session is not None and self._session.machine.was_read(call_id)

    def cancel(self, call_id: int) -> None:
        """Give a sent call up, which is counted off already."""
        session = self._session
        # An id is good in one session only, and it is of this one: a session that is lost takes its
        # calls off the connection (`on_lost`) before another opens.
        if session is not None and call_id in session.machine.calls:
            session.machine.cancel(call_id)
            # The last call of a replica that is gone ends the session here; the kick is harmless.
            self._close_if_done()
            session.kick()
            self._tell()

    def grant(self, call_id: int, items: int, bytes_: int) -> None:
        """Let a stream go on."""
        if self._session is not None:
            self._session.machine.grant(call_id, items, bytes_)
            self._session.kick()

    # ------------------------------------------------------------ what the replica says

    def _on_message(self, data: bytes) -> None:
        session = self._session
        assert session is not None
        received: Received[Carried] = Received()
        try:
            session.machine.receive(data, received)
        finally:  # what came before the frame that breaks the session holds
            session.on_message()
            self._counters.frames_received += len(received.events)
            if received.lent:
                self._counters.stored_received += sum(is_stored(p) for _, p in received.lent)
                self._lender.borrow(session.machine.epoch, received.lent)
            # They failed over their news, and the replica may go on with them: it is told to stop.
            for given_up in hand_out(received):
                session.machine.forget(given_up)
            # Behind the calls: a replica that turns one away is judged by what is left on it.
            self._update_peer(session, received)
        self._close_if_done()
        self._tell()
        if self._session is not None and not self.takes_calls:
            self._session.kick(at_once=True)  # nothing more can be sent before the next message

    def _update_peer(self, session: Session, received: Received[Carried]) -> None:
        peer = self.peer
        if received.opened:
            self._stop_timer()
            self.trouble.on_opened()
            session.is_open = True
            peer.carrier = session.carrier
            machine, ours = session.machine, self._settings.max_message_bytes
            self.peer_max_message_bytes = min(machine.peer_max_message_bytes, ours)
            self.takes_stored, self.takes_inputs = machine.stores, machine.inputs.credit is not None
            # Of an earlier session: the replica that turned a call away then may be idle by now.
            peer.blocked = False
        if received.draining:
            self._become(PeerState.GONE)
        elif session.is_open and peer.state not in _HEARD:
            self._become(PeerState.READY)
        if received.load is not None:
            peer.on_report(received.load, received.standby)
        if received.rejected and not received.slot_free:
            # The load on the message is newer than the rejection: room may have come up since.
            peer.blocked = peer.load >= peer.facts.max_ongoing_requests
        elif received.slot_free or received.events:
            peer.blocked = False

    def _tell(self) -> None:
        # A copy: what a user hears may make it leave (`ConnectionPool.release`).
        for user in tuple(self.users):
            try:
                user.on_change(self)
            except Exception:
                logger.exception("%r could not follow the news of %r", user, self)

    def beat(self, now_s: float) -> None:
        """Ask a silent replica for a sign of life, suspect a mute one; sets `look_s`."""
        session = self._session
        if session is None:
            self.look_s = NEVER
            return
        is_mute = session.beat(now_s, has_calls=self.peer.in_flight > 0)
        self.look_s = session.look_s
        if is_mute and self.peer.state is PeerState.READY:
            self._become(PeerState.SUSPECT)
            self.trouble.on_mute()
            self._tell()


_HEARD = (PeerState.READY, PeerState.GONE)
"""A message moves every other state to READY."""
