"""The replicas of one deployment, as one router reaches them: the pick, and what it tells of them.

Lives on the router's loop. To which of them connections are held is decided in `held.py`.
Invariant: a call waits for no want of room while a replica may have some to which no connection is
held: `pick` takes that one in.
"""

from __future__ import annotations

from collections.abc import Iterable

from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection, ConnectionUser
from serve_grpc.caller.held import HeldConnections
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.config import settings
from serve_grpc.routing.outliers import Outliers
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import OPENING

__all__ = ["Replicas"]

NAMED = 3
"""Replicas that an error names; of hundreds the others are mostly alike."""


class Replicas:
    """The replicas that have an endpoint, and connections to those that calls may go to.

    Args:
        pool: Where connections come from and go back to.
        user: Who sends calls over them.
        node_id, zone: Of this caller, where it prefers replicas close by; else "".
        subset_size: Of how many replicas to choose at least, where there are more; 0 for all, None
            for what the process's settings say.
        caller_id: Callers with other ids choose from other replicas; None for the process's own.

    Attributes:
        outliers: Among them.
        is_opening: Whether the last pick failed while sessions were about to open, so that others
            may have room that the call does not prefer.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        user: ConnectionUser,
        *,
        node_id: str,
        zone: str,
        subset_size: int | None = None,
        caller_id: bytes | None = None,
    ) -> None:
        self.outliers = Outliers()
        self.is_opening = False
        self._held = HeldConnections(
            pool,
            user,
            node_id=node_id,
            zone=zone,
            subset_size=settings.subset_size if subset_size is None else subset_size,
            caller_id=caller_id,
            on_release=self.outliers.forget,
        )
        self._picker = self._held.picker
        self._only: Connection | None = None  # set while there is one
        self._until_look = 0  # picks; 0 while all replicas are in the subset
        self._blocked: set[Peer] = set()  # since before the last look
        self._is_wanting = False  # the last pick found no room
        self._promised = 0  # how many calls those will take that are to open for who waits

    def __len__(self) -> int:
        return len(self._held.facts)

    def __repr__(self) -> str:
        return f"<Replicas {list(self._held.connections.values())!r} of {len(self)}>"

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(self._held.facts)

    @property
    def held(self) -> tuple[Peer, ...]:
        """What is known of each to which a connection is held; from any thread."""
        return tuple(self._held.by_peer)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """What is known of each of them; from any thread."""
        held = self.held
        known = {peer.facts.replica_id for peer in held}
        facts = tuple(self._held.facts.values())
        return (*held, *(Peer(one) for one in facts if one.replica_id not in known))

    def update(self, changed: Iterable[ReplicaFacts], gone: Iterable[str]) -> None:
        """Follow the list of replicas; takes as long as there are changes.

        Args:
            changed: Those that are new, or of which something is.
            gone: Ids of those that are listed no longer.
        """
        held = self._held
        held.update(changed, gone)
        self._only = next(iter(held.connections.values())) if len(held.facts) == 1 else None
        self._promised = 0
        self._blocked.clear()  # some may be gone
        self._set_look()

    def connection_to(self, replica_id: str) -> Connection | None:
        """The connection to one of them, which a call may wait for; None if it is not listed."""
        return self._held.connection_to(replica_id)

    def pick(self, model_id: str) -> Connection | None:
        """A connection that takes a call now, or None; opens sessions where there are none yet."""
        only = self._only
        # Nothing to choose: whatever a call prefers, one that has room gets it.
        if only is not None and only.peer.has_room and only.takes_bytes:
            return only
        if self._until_look:
            self._until_look -= 1
            if not self._until_look:
                self._look()
        idle: list[Peer] = []
        if model_id:
            self._held.reach_holders(model_id)
        peer = self._picker.pick(model_id, idle)
        if peer is None and not self._held.subset.outside and self._pardon_without_better():
            peer = self._picker.pick(model_id, idle)
        # Only now, when a call wants them: a replica that is never picked costs no session.
        for unconnected in idle:
            self._held.by_peer[unconnected].connect()
        if peer is None:
            return self._pick_beyond(idle)
        if self._is_wanting:
            self._is_wanting = False
            self._held.on_room()
        connection = self._held.by_peer[peer]
        if model_id:
            self._held.is_used(connection)
        return connection if connection.takes_bytes else self._pick_unclogged()

    def _pick_beyond(self, idle: list[Peer]) -> Connection | None:
        """For a call that finds no room in the subset, while sessions to `idle` are opened."""
        held, before = self._held, len(self._held.subset)
        self._is_wanting, self._promised = True, 0
        if self.widen(1):
            return next(c for c in held.subset_connections() if c.takes_calls)
        # Sessions about to open may bring room, which is better than to stand by (decision 0015);
        # but those of the subset: a caller that knows its replicas is sooner served by them.
        peer = None if idle else self._picker.pick_standby()
        if peer is None:
            self.is_opening = bool(idle) or len(held.subset) > before
            return None
        connection = held.by_peer[peer]
        return connection if connection.takes_bytes else None

    def _pick_unclogged(self) -> Connection | None:
        """For a call when megabytes wait to be written to the one that was picked; rare."""
        others = (other for other in self._held.connections.values() if other.takes_calls)
        found = min(others, key=lambda other: other.peer.load, default=None)
        return found if found is not None else self._pick_beyond([])

    def widen(self, waiting: int) -> bool:
        """Take in replicas from outside of the subset, if that is why calls wait; at once.

        Args:
            waiting: How many wait. Until those whose sessions are about to open have slots for all
                of them, more are taken in.

        Returns:
            Whether one that was taken in has room already.
        """
        held = self._held
        if not held.subset.outside or waiting <= self._promised or not self._is_wanting:
            return False
        # Calls for whom nobody has room; those that wait for what they prefer wait on.
        if any(p.has_room and held.by_peer[p].takes_bytes for p in self._picker.peers):
            return False
        while came := held.grow_for(waiting):
            for connection in came:
                connection.connect()
            if any(connection.takes_calls for connection in came):
                return True
        self._promised = held.slots_to_come()
        return False

    def _look(self) -> None:
        """Once for as many picks as there are replicas in the subset, so that each pays for one."""
        # Many a replica has had room again since it turned a call away, and will say so when our
        # turn comes. In a small subset those would soon be all, and it would grow for nothing. But
        # not those of since the last look: a call that all turn away would go round for ever.
        blocked = {peer for peer in self._held.by_peer if peer.blocked}
        for peer in blocked & self._blocked:
            peer.blocked = False
        self._blocked = blocked - self._blocked
        self._held.look()
        self._set_look()

    def _set_look(self) -> None:
        subset = self._held.subset
        self._until_look = max(1, len(subset)) if subset.outside else 0

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
        penalised = [peer for peer in self._held.by_peer if peer.penalised]
        if not penalised or any(
            peer.state is PeerState.READY and not peer.penalised for peer in self._held.by_peer
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
        held = self._held
        opening = (p.facts.max_ongoing_requests for p in held.by_peer if p.state in OPENING)
        return held.slots_outside + sum(opening)

    @property
    def has_ready(self) -> bool:
        """Whether one of them answers, or may: those outside are asked while calls wait."""
        is_asking = self._is_wanting and self._held.subset.outside > 0
        return self._is_any(PeerState.READY) or (is_asking and self._is_any(*OPENING))

    def _is_any(self, *states: PeerState) -> bool:
        return any(peer.state in states for peer in self._held.by_peer)

    @property
    def trouble(self) -> str:
        """Which of them cannot be reached and why, if that is so for all; else ""."""
        if self._is_any(PeerState.READY):
            return ""
        troubles = [str(c.trouble) for c in self._held.connections.values() if c.trouble.reason]
        if not troubles:
            return ""
        more = f", and {len(troubles) - NAMED} more" if len(troubles) > NAMED else ""
        return f"no replica could be reached: {', '.join(troubles[:NAMED])}{more}"

    @property
    def has_blocked(self) -> bool:
        """Whether one of them turned a call away and has not called back."""
        return any(peer.blocked for peer in self._held.by_peer)

    def unblock(self) -> None:
        """Ask again those that turned a call away."""
        for peer in self._held.by_peer:
            peer.blocked = False
