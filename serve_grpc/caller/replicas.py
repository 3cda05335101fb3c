"""The replicas of one deployment, as one router reaches them: a connection each, and the pick.

Lives on the router's loop. Invariant: the connections held are those of the last `update`, and
every one of them is released exactly once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection, ConnectionUser
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.routing.outliers import Outliers
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import OPENING, Picker

__all__ = ["Replicas"]

NAMED = 3
"""Replicas that an error names; of hundreds the others are mostly alike."""


class Replicas:
    """Connections to the replicas that have an endpoint.

    Args:
        pool: Where connections come from and go back to.
        user: Who sends calls over them.
        node_id, zone: Of this caller, where it prefers replicas close by; else "".

    Attributes:
        outliers: Among them.
        is_opening: Whether the last pick failed while sessions were about to open, so that others
            may have room that the call does not prefer.
    """

    def __init__(
        self, pool: ConnectionPool, user: ConnectionUser, *, node_id: str, zone: str
    ) -> None:
        self._pool = pool
        self._user = user
        self._node_id = node_id
        self._zone = zone
        self._rng = random.Random()
        self._connections: dict[str, Connection] = {}
        self._by_peer: dict[Peer, Connection] = {}
        self._only: Connection | None = None  # set while there is one
        self._picker = Picker((), rng=self._rng)
        self.outliers = Outliers()
        self.is_opening = False

    def __len__(self) -> int:
        return len(self._connections)

    def __repr__(self) -> str:
        return f"<Replicas {list(self._connections.values())!r}>"

    @property
    def peers(self) -> tuple[Peer, ...]:
        """What is known of each of them; from any thread."""
        return tuple(self._by_peer)

    def update(self, reachable: Iterable[ReplicaFacts]) -> None:
        """Let go of the replicas that are not in `reachable`, and hold those that are."""
        fresh = {facts.replica_id: facts for facts in reachable}
        for replica_id in [held for held in self._connections if held not in fresh]:
            connection = self._connections.pop(replica_id)
            del self._by_peer[connection.peer]
            self.outliers.forget(connection.peer)
            self._pool.release(connection, self._user)
        for replica_id, facts in fresh.items():
            connection = self._pool.acquire(facts, self._user)
            self._connections[replica_id] = connection
            self._by_peer[connection.peer] = connection
            # Calls for a model may have no other place to go, so this replica is never avoided.
            if facts.model_ids:
                connection.peer.pardon()
        self._only = connection if len(self._connections) == 1 else None
        self._picker = Picker(self._by_peer, rng=self._rng, node_id=self._node_id, zone=self._zone)

    def connection_to(self, replica_id: str) -> Connection | None:
        """The connection to one of them."""
        return self._connections.get(replica_id)

    def pick(self, model_id: str) -> Connection | None:
        """A connection that takes a call now, or None; opens sessions where there are none yet."""
        only = self._only
        # Nothing to choose: whatever a call prefers, one that has room gets it.
        if only is not None and only.peer.has_room and only.takes_bytes:
            return only
        idle: list[Peer] = []
        peer = self._picker.pick(model_id, idle)
        if peer is None and self._pardon_without_better():
            peer = self._picker.pick(model_id, idle)
        # Only now, when a call wants them: a replica that is never picked costs no session.
        for unconnected in idle:
            self._by_peer[unconnected].connect()
        # Sessions about to open may bring room, which is better than to stand by (decision 0015).
        if peer is None and not idle:
            peer = self._picker.pick_standby()
        if peer is None:
            self.is_opening = bool(idle)
            return None
        connection = self._by_peer[peer]
        if connection.takes_bytes:
            return connection
        # Megabytes wait to be written to it. Rare, so looking at everyone costs nothing.
        others = (other for other in self._connections.values() if other.takes_calls)
        return min(others, key=lambda other: other.peer.load, default=None)

    def on_failure(self, connection: Connection, call: Call) -> None:
        """The user's code raised on this replica: penalise it if others are better at that."""
        peer, method = connection.peer, call.fields.envelope.method
        # One replica holds the model, so it gets all the bad input for it (`routing/outliers.py`).
        if call.fields.multiplexed_model_id or not self.outliers.on_failure(peer, method):
            return
        if peer.facts.model_ids or not self.outliers.has_better(peer, method):
            peer.pardon()
        else:
            connection.penalty.on_outlier()

    def on_success(self, connection: Connection, call: Call) -> None:
        """The user's code came to its end. Needed while there are outliers."""
        if not call.fields.multiplexed_model_id:
            self.outliers.on_success(connection.peer, call.fields.envelope.method)
        if connection.peer.may_probe:
            connection.peer.pardon()

    def _pardon_without_better(self) -> bool:
        """If only penalised replicas can be reached, let them have calls; whether that is so."""
        penalised = [peer for peer in self._by_peer if peer.penalised]
        if not penalised or any(
            peer.state is PeerState.READY and not peer.penalised for peer in self._by_peer
        ):
            return False
        for peer in penalised:
            peer.pardon()
        return True

    @property
    def room_to_come(self) -> int:
        """How many calls those will take whose first sessions are not open yet, if they idle.

        So much is believed of a replica whose session is open, too, until it says how busy it is.
        """
        return sum(p.facts.max_ongoing_requests for p in self._by_peer if p.state in OPENING)

    @property
    def has_ready(self) -> bool:
        """Whether one of them answers."""
        return any(peer.state is PeerState.READY for peer in self._by_peer)

    @property
    def trouble(self) -> str:
        """Which of them cannot be reached and why, if that is so for all; else ""."""
        if self.has_ready:
            return ""
        troubles = [str(c.trouble) for c in self._connections.values() if c.trouble.reason]
        if not troubles:
            return ""
        more = f", and {len(troubles) - NAMED} more" if len(troubles) > NAMED else ""
        return f"no replica could be reached: {', '.join(troubles[:NAMED])}{more}"

    @property
    def has_blocked(self) -> bool:
        """Whether one of them turned a call away and has not called back."""
        return any(peer.blocked for peer in self._by_peer)

    def unblock(self) -> None:
        """Ask again those that turned a call away."""
        for peer in self._by_peer:
            peer.blocked = False
