"""Connections and sessions whose network is the clock: a message is a timer.

A connection is the package's own, but for the session's bytes: its state, what it makes of a
replica's news and whom it tells is the code of `caller/connection.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bench.fleet_simulation.clock import Clock
from bench.fleet_simulation.replicas import SimulatedReplica
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.events import hand_out, hand_out_lost
from serve_grpc.caller.trouble import Penalty
from serve_grpc.protocol.received import CallEvent, CallEventKind, Received
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts

__all__ = ["DIAL_S", "HOP_S", "SimulatedPool", "SimulatedSession"]

HOP_S = 0.0005
"""From one process to another."""
DIAL_S = 0.005
"""Until a session is open: the dial, two round trips and the work of both sides."""
AGAIN_S = 1.0

_FAILED = Error(code=Error.USER_EXCEPTION)
_RESULT, _ERROR = CallEventKind.RESULT.value, CallEventKind.ERROR.value


class SimulatedSession:
    """An open session, for both sides.

    Attributes:
        calls: That the replica has not answered.
        sent, read: How many requests were, by the caller and by the replica.
    """

    __slots__ = ("_now", "_said", "calls", "connection", "is_open", "read", "replica", "sent")

    def __init__(self, connection: SimulatedConnection, replica: SimulatedReplica) -> None:
        self.connection = connection
        self.replica = replica
        self.calls: dict[int, Any] = {}
        self.sent = self.read = 0
        self.is_open = True
        self._said = ([], [], False)  # type: tuple[list[tuple[int, bool]], list[int], bool]
        self._now = False
        replica.sessions.add(self)

    # ------------------------------------------------------------ the replica's side

    @property
    def session(self) -> SimulatedSession:
        """To the admission this is a `ReplicaPump`, too."""
        return self

    def answer(self, call_id: int, *, is_failed: bool) -> None:
        """The call is over."""
        if self.is_open:
            self._send([(call_id, is_failed)], [], is_free=False)

    def reject(self, call_id: int) -> bool:
        """Turn it away."""
        if self.is_open:
            self._send([], [call_id], is_free=False)
        return self.is_open

    def slot_free(self) -> None:
        """Tell that there is room."""
        if self.is_open:
            self._send([], [], is_free=True)

    def kick(self) -> None:
        """Each message leaves at once."""

    def _send(
        self, answered: list[tuple[int, bool]], rejected: list[int], *, is_free: bool
    ) -> None:
        replica = self.replica
        load, standby = replica.running, replica.standby()
        message = answered, rejected, is_free, load, standby, self.read
        replica.main_loop.at(HOP_S, self.connection.on_news, self, message)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """The caller needs it no more."""
        self.is_open = False
        self.replica.sessions.discard(self)
        self.replica.active -= self.read > 0
        self.replica.admission.forget(self)  # type: ignore[arg-type]

    def cut(self) -> None:
        """The replica is gone; the caller notices."""
        self.close()
        self.replica.main_loop.at(HOP_S, self.connection.on_cut, self)


class SimulatedConnection(Connection):
    """A connection of the package's without bytes."""

    peer_max_message_bytes = 2**62
    takes_stored = takes_inputs = False
    takes_bytes = True
    max_message_bytes = 2**62
    serializers = None
    trouble: Any = SimpleNamespace(times=0, reason="")

    def __init__(self, pool: SimulatedPool, facts: ReplicaFacts) -> None:
        # Not the constructor of the class above: of a million of these each byte counts.
        self.peer = Peer(facts)
        self.users = pool.users
        self._pool = pool
        self._session: Any = None

    def __getattr__(self, name: str) -> Any:
        # Of most of them nobody ever asks for it.
        if name != "penalty":
            raise AttributeError(name)
        self.penalty = Penalty(self.peer, self._tell)
        return self.penalty

    def _connect(self) -> None:
        self._pool.clock.at(DIAL_S, self._opened)

    def _opened(self) -> None:
        replica = self._pool.replicas.get(self.peer.facts.replica_id)
        if self.peer.state is PeerState.GONE:
            return
        if replica is None or not replica.is_up:
            self._lose()
            return
        self._session = SimulatedSession(self, replica)
        self._pool.opened += 1
        self.peer.blocked = False
        self._hear(Received(load=replica.running, standby=replica.standby()))

    def _lose(self) -> None:
        self._become(PeerState.LOST)
        self.peer.reported = 0
        self._pool.clock.at(AGAIN_S, self._again)
        self._tell()

    def _again(self) -> None:
        if self.peer.state is PeerState.LOST:
            self._connect()

    def _close_if_done(self) -> None:
        if self.peer.state is PeerState.GONE and not self.peer.in_flight and self._session:
            self._session.close()
            self._session = None
            self._pool.closed += 1

    def send(self, carried: Any, *, is_new: bool = False) -> int:
        """Queue a call."""
        session = self._session
        self.peer.on_sent()
        session.sent += 1
        call_id: int = session.sent
        session.calls[call_id] = carried
        self._pool.clock.at(HOP_S, session.replica.on_request, session, call_id)
        return call_id

    def on_news(self, session: SimulatedSession, message: Any) -> None:
        """A message has come."""
        if self._session is not session:
            return
        answered, rejected, is_free, load, standby, read = message
        received: Received[Any] = Received(
            load=load + session.sent - read, standby=standby, slot_free=is_free
        )
        for call_id, is_failed in answered:
            kind, error = (_ERROR, _FAILED) if is_failed else (_RESULT, None)
            received.events.append(CallEvent(session.calls.pop(call_id), kind, b"", error))
        received.rejected = [session.calls.pop(call_id) for call_id in rejected]
        self._pool.rejected += len(rejected)
        self._hear(received)

    def _hear(self, received: Received[Any]) -> None:
        self._pool.mailbox.enter(self._take, received)

    def _take(self, received: Received[Any]) -> None:
        hand_out(received)
        self._update_peer(self._session, received)
        self._close_if_done()
        self._tell()

    def on_cut(self, session: SimulatedSession) -> None:
        """The session has ended under us."""
        if self._session is session:
            self._session = None
            self._pool.closed += 1
            if self.peer.state is not PeerState.GONE:
                self._lose()
            lost = [(call, True) for call in session.calls.values()]
            self._pool.mailbox.enter(hand_out_lost, lost, "cut")
            self._tell()


class SimulatedPool:
    """In the place of a `ConnectionPool`, of one caller.

    Attributes:
        opened, closed: How many sessions were.
        rejected: How many calls were turned away.
    """

    def __init__(self, clock: Clock, mailbox: Any, replicas: dict[str, SimulatedReplica]) -> None:
        self.clock, self.mailbox, self.replicas = clock, mailbox, replicas
        self.users: Any = ()
        self.opened = self.closed = self.rejected = 0

    def acquire(self, facts: ReplicaFacts, _: Any) -> SimulatedConnection:
        return SimulatedConnection(self, facts)

    def release(self, connection: Connection, _: Any) -> None:
        connection.retire()
