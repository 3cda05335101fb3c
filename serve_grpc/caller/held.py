"""To which replicas of a deployment a router holds connections, and for how long.

To those of its subset (`routing/subset.py`), to holders of models that its calls want, and to those
that a call was to go to by name. Of the others only the facts are kept. Lives on the router's loop.

Invariants: every connection that is held is released exactly once. What grows a subset is a call
that wants room; the timer only makes it smaller, and lets go of nothing that a call waits for.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from math import ceil

from serve_grpc.caller.connection import Connection, ConnectionUser
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.mailbox import mailbox_of
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import OPENING, Picker
from serve_grpc.routing.subset import Shift, Size, Subset

__all__ = ["HeldConnections"]

_BEGINNING = secrets.token_bytes(16)
"""Not from `random`: programs seed that, and all callers would crowd on the same replicas."""
LOOK_S = 10.0
"""Between two looks whether connections are held that nobody needs."""
EVERYONE = 2**31


class HeldConnections:
    """Of one router.

    Args:
        pool: Where connections come from and go back to.
        user: Who sends calls over them.
        node_id, zone: Of this caller, where it prefers replicas close by; else "".
        subset_size: The least number of replicas in the subset; 0 for all.
        caller_id: Orders the replicas; None for the process's own: its routers share sessions.
        on_release: Told of each peer whose connection is about to be released.

    Attributes:
        facts: Of all replicas, by id.
        connections: That are held, by the replica's id.
        by_peer: The same.
        picker: Over those that calls may go to.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        user: ConnectionUser,
        *,
        node_id: str,
        zone: str,
        subset_size: int,
        caller_id: bytes | None,
        on_release: Callable[[Peer], None],
    ) -> None:
        self._pool = pool
        self._user = user
        self._node_id, self._zone = node_id, zone
        self._on_release = on_release
        self.facts: dict[str, ReplicaFacts] = {}
        self.connections: dict[str, Connection] = {}
        self.by_peer: dict[Peer, Connection] = {}
        self.picker = Picker((), rng=random.Random(), node_id=node_id, zone=zone)
        self._size = Size(subset_size or EVERYONE)
        # A process that was forked has the same beginning.
        process_id = _BEGINNING + os.getpid().to_bytes(8, "big")
        self.subset = Subset(process_id if caller_id is None else caller_id, self._size.least)
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        self._slots = 0  # of all replicas together
        # Beside the subset, with whether they were asked for since the last look.
        self._named: dict[str, bool] = {}
        self._step = 1
        self._has_grown = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<HeldConnections {len(self.connections)}, {self.subset!r}>"

    # ------------------------------------------------------------ news of the control plane

    def update(self, changed: Iterable[ReplicaFacts], gone: Iterable[str]) -> None:
        """Follow the list of replicas.

        Args:
            changed: Those that are new, or of which something is.
            gone: Ids of those that are listed no longer.
        """
        known = {facts.replica_id: facts for facts in changed}
        lost = [one for one in gone if one in self.facts and one not in known]
        for replica_id in lost:
            self._note(self.facts.pop(replica_id), -1)
        for replica_id, facts in known.items():
            if (before := self.facts.get(replica_id)) is not None:
                self._note(before, -1)
            self.facts[replica_id] = facts
            self._note(facts, 1)
        shift = self.subset.update({one: self._rank(f) for one, f in known.items()}, lost)
        for replica_id in lost:
            self._release(replica_id)
        for replica_id, facts in known.items():
            if replica_id in self.connections:
                # The pool has the connection, and gives its peer the new facts.
                self._choose_from(self._pool.acquire(facts, self._user))
        self._follow(shift)
        self._watch()

    def _note(self, facts: ReplicaFacts, count: int) -> None:
        self._slots += count * facts.max_ongoing_requests
        for model_id in facts.model_ids:
            if count > 0:
                self._holders[model_id].add(facts.replica_id)
                continue
            self._holders[model_id].discard(facts.replica_id)
            if not self._holders[model_id]:
                del self._holders[model_id]

    def _rank(self, facts: ReplicaFacts) -> int:
        if self._node_id and facts.node_id == self._node_id:
            return 0
        return 1 if self._zone and facts.zone == self._zone else 2

    # ------------------------------------------------------------ who is held

    def _follow(self, shift: Shift) -> list[Connection]:
        """Hold whoever came into the subset; returns them. Send no more calls to who left it."""
        came, left = shift
        for replica_id in left:
            if (connection := self.connections.get(replica_id)) is not None:
                self._choose_from(connection)
                self._release_if_idle(replica_id)
        return [self._hold(replica_id) for replica_id in came]

    def _hold(self, replica_id: str) -> Connection:
        connection = self.connections.get(replica_id)
        if connection is None:
            connection = self._pool.acquire(self.facts[replica_id], self._user)
            self.connections[replica_id] = connection
            self.by_peer[connection.peer] = connection
        self._choose_from(connection)
        return connection

    def _choose_from(self, connection: Connection) -> None:
        peer = connection.peer
        replica_id = peer.facts.replica_id
        if replica_id in self.subset:
            self.picker.add(peer)
        elif replica_id in self._named and peer.facts.model_ids:
            self.picker.add(peer, for_models_only=True)
        else:
            self.picker.discard(peer)
        # Calls for a model may have no other place to go, so this replica is never avoided.
        if peer.facts.model_ids:
            peer.pardon()

    def _release(self, replica_id: str) -> None:
        self._named.pop(replica_id, None)
        connection = self.connections.pop(replica_id, None)
        if connection is not None:
            del self.by_peer[connection.peer]
            self.picker.discard(connection.peer)
            self._on_release(connection.peer)
            self._pool.release(connection, self._user)

    def _release_if_idle(self, replica_id: str) -> None:
        connection = self.connections[replica_id]
        state = connection.peer.state
        is_idle = state is PeerState.IDLE or connection.takes_calls
        # Whoever waits for this very replica waits for a session, or for room there; and for its
        # first session others may wait as well.
        is_named = replica_id in self._named and not is_idle
        if not connection.peer.in_flight and not is_named and state is not PeerState.CONNECTING:
            self._release(replica_id)

    # ------------------------------------------------------------ beyond the subset

    def connection_to(self, replica_id: str) -> Connection | None:
        """The connection to one of the replicas, in the subset or not; None if it is not listed."""
        if replica_id not in self.facts:
            return None
        # From now on calls may wait for it that nobody but their queue knows.
        self._named[replica_id] = True
        connection = self.connections.get(replica_id)
        if connection is None:
            connection = self._hold(replica_id)
            self._watch()
        return connection

    def reach_holders(self, model_id: str) -> None:
        """Choose from holders of a model outside of the subset, too, unless others have room."""
        known, inside = self._holders.get(model_id), self.picker.holders(model_id)
        if not known or len(inside) == len(known):
            return
        least = self._size.least
        if len(inside) >= least and any(p.has_room or p.state in OPENING for p in inside):
            return
        more = max(least - len(inside), len(inside))
        others = known.difference(peer.facts.replica_id for peer in inside)
        for replica_id in self.subset.first_of(others, more):
            self._named[replica_id] = True
            self._hold(replica_id)
        self._watch()

    def is_used(self, connection: Connection) -> None:
        """A call for a model goes there."""
        replica_id = connection.peer.facts.replica_id
        if replica_id in self._named:
            self._named[replica_id] = True

    # ------------------------------------------------------------ growing

    def subset_connections(self) -> Iterator[Connection]:
        """To those of the subset."""
        return (self.by_peer[peer] for peer in self.picker.peers)

    @property
    def slots_outside(self) -> int:
        """How many calls those will take to which no connection is held, if they idle."""
        held = sum(peer.facts.max_ongoing_requests for peer in self.by_peer)
        return self._slots - held

    def slots_to_come(self) -> int:
        """How many calls those of the subset will take whose first sessions are to open."""
        peers = self.picker.peers
        return sum(p.facts.max_ongoing_requests for p in peers if p.state in OPENING)

    def grow_for(self, waiting: int) -> list[Connection]:
        """Take in more, until those whose sessions are to open have slots for so many calls.

        Returns:
            Those that came in.
        """
        missing = waiting - self.slots_to_come()
        if missing <= 0 or not self.subset.outside:
            return []
        slots = self._slots / len(self.facts)
        # Twice as many as the last time, if those did not help: in a fleet that is nearly full the
        # one with room is found in a few steps, however large the fleet.
        more = max(self._step, ceil(missing / slots))
        self._step *= 2
        self._has_grown = True
        return self._resize(len(self.subset) + more)

    def on_room(self) -> None:
        """A call found room."""
        self._step = 1

    def look(self) -> None:
        """Take in as many as the calls in flight make desirable."""
        self._size.look(*self._load())
        if self._size.wanted > len(self.subset) and self.subset.outside:
            self._resize(self._size.wanted)

    def _load(self) -> tuple[int, float, int]:
        peers = self.picker.peers
        in_flight = sum(peer.in_flight for peer in peers)
        usable = (PeerState.READY, *OPENING)
        unusable = sum(peer.state not in usable or peer.penalised for peer in peers)
        return in_flight, self._slots / max(1, len(self.facts)), unusable

    def _resize(self, size: int) -> list[Connection]:
        came = self._follow(self.subset.resize(size))
        self._watch()
        return came

    # ------------------------------------------------------------ shrinking

    def _watch(self) -> None:
        """See after a while whether fewer are enough; no timer while there is nothing to let go."""
        has_more = len(self.subset) > self._size.least or len(self.connections) > len(self.subset)
        if has_more and self._timer is None:
            mailbox = mailbox_of(asyncio.get_running_loop())
            self._timer = mailbox.call_later(LOOK_S, self._look_back)
        elif not self.facts and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_back(self) -> None:
        self._timer = None
        size = self._size.after_a_while(len(self.subset), *self._load())
        if size < len(self.subset) and not self._has_grown:  # else calls waited a moment ago
            self._resize(size)
        self._has_grown = False
        self._step = 1
        for replica_id in [one for one in self.connections if one not in self.subset]:
            if self._named.get(replica_id):
                self._named[replica_id] = False
            else:
                self._release_if_idle(replica_id)
        self._watch()
