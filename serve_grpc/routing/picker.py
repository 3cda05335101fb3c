"""Power of two choices: of two replicas at random, the less busy one.

The load is what replicas put on their replies, so no probe is sent. Preferences (the model that
is loaded, the same node, the same zone) form tiers that are tried in order, as Ray Serve's own
request router does; only a tier without room sends the call to the next one. A tier whose replicas
are about to open their first sessions is not without room: the call waits for them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from serve_grpc.routing.peer import Peer, PeerState

__all__ = ["OPENING", "Picker"]


PAIRS = 4
"""Pairs that are tried before everyone is looked at; with half of the replicas full, one pick in
256 comes to that."""
OPENING = (PeerState.IDLE, PeerState.CONNECTING)
"""States of a peer whose first session is to come."""


class _Group:
    """Peers in any order, of which one is added or taken out in one step.

    Attributes:
        peers: The same list for as long as the group exists.
    """

    __slots__ = ("_places", "peers")

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._places: dict[Peer, int] = {}

    def add(self, peer: Peer) -> None:
        if peer not in self._places:
            self._places[peer] = len(self.peers)
            self.peers.append(peer)

    def discard(self, peer: Peer) -> None:
        place = self._places.pop(peer, None)
        last = self.peers.pop() if place is not None else peer
        if place is not None and last is not peer:
            self.peers[place] = last
            self._places[last] = place


class Picker:
    """The replicas to choose from: those of a caller's subset, and who holds a model beside them.

    Args:
        peers: Of the subset.
        rng: Source of randomness.
        node_id: The caller's node if it prefers local replicas, else "".
        zone: The caller's availability zone if it prefers replicas there, else "".

    Attributes:
        peers: Those of the subset, in any order.
    """

    def __init__(
        self, peers: Iterable[Peer], *, rng: random.Random, node_id: str = "", zone: str = ""
    ) -> None:
        self._rng = rng
        self._node_id, self._zone = node_id, zone
        self._all, self._near, self._same_zone = _Group(), _Group(), _Group()
        self.peers: Sequence[Peer] = self._all.peers
        preferred = ((node_id, self._near), (zone, self._same_zone))
        self._tiers = (*(group.peers for name, group in preferred if name), self.peers)
        self._by_model: defaultdict[str, _Group] = defaultdict(_Group)
        self._by_models_held: defaultdict[int, _Group] = defaultdict(_Group)
        # In which groups a peer is, for its facts are other ones when it has to leave them.
        self._groups: dict[Peer, tuple[frozenset[str], Sequence[_Group]]] = {}
        for peer in peers:
            self.add(peer)

    def __repr__(self) -> str:
        return f"<Picker of {len(self.peers)} replicas>"

    def __contains__(self, peer: object) -> bool:
        return peer in self._groups

    def holders(self, model_id: str) -> Sequence[Peer]:
        """Those to choose from that hold a model."""
        group = self._by_model.get(model_id)
        return group.peers if group is not None else ()

    def add(self, peer: Peer, *, for_models_only: bool = False) -> None:
        """Choose from one more, or take note that the facts of one are others.

        Args:
            peer: Which.
            for_models_only: It gets only calls for models that it holds.
        """
        self.discard(peer)
        facts = peer.facts
        groups = [self._by_model[model_id] for model_id in facts.model_ids]
        if not for_models_only:
            groups += [self._all, self._by_models_held[len(facts.model_ids)]]
            groups += [self._near] if facts.node_id == self._node_id else []
            groups += [self._same_zone] if facts.zone == self._zone else []
        for group in groups:
            group.add(peer)
        self._groups[peer] = facts.model_ids, groups

    def discard(self, peer: Peer) -> None:
        """Choose from one less."""
        models, groups = self._groups.pop(peer, (frozenset(), ()))
        for group in groups:
            group.discard(peer)
        for model_id in models:  # models are many, and of most nobody asks any more
            if not self._by_model[model_id].peers:
                del self._by_model[model_id]

    def pick(self, model_id: str, idle: list[Peer]) -> Peer | None:
        """A peer that has room, or None. Never waits.

        Args:
            model_id: Multiplexed model the call wants, "" for none.
            idle: Peers that were considered but have no session yet are added here, some of them
                twice, to be connected; so are those that the call should wait for.
        """
        for tier in self._model_tiers(model_id) if model_id else self._tiers:
            peer = self._pick_in(tier, idle)
            if peer is not None or tier is self.peers:
                return peer
            opening = [peer for peer in tier if peer.state in OPENING]
            if opening:
                idle += opening
                return None
        return None

    def pick_standby(self) -> Peer | None:
        """Of those that let calls wait for a slot, the one that is ahead the least.

        For when nobody has room.
        """
        peers = self.peers
        if len(peers) == 1:
            return peers[0] if peers[0].has_standby_room else None
        waiting = (peer for peer in peers if peer.has_standby_room)
        return min(waiting, key=lambda p: p.load - p.facts.max_ongoing_requests, default=None)

    # As `MultiplexMixin.apply_multiplex_routing` of Ray 2.60 (`request_router/request_router.py`):
    # who holds the model, then who holds the fewest, then anybody.
    def _model_tiers(self, model_id: str) -> tuple[Sequence[Peer], ...]:
        counts = [count for count, group in self._by_models_held.items() if group.peers]
        fewest = self._by_models_held[min(counts)].peers if counts else ()
        return self.holders(model_id), fewest, *self._tiers

    def _pick_in(self, peers: Sequence[Peer], idle: list[Peer]) -> Peer | None:
        count = len(peers)
        if count == 1 and peers[0].has_room:
            return peers[0]
        if count > 2:
            for _ in range(PAIRS):
                # Two different ones, each pair equally likely. `randrange` takes several times as
                # long, and this is done for every call.
                first = int(self._rng.random() * count)
                second = int(self._rng.random() * (count - 1))
                pair: Sequence[Peer] = (peers[first], peers[second + (second >= first)])
                best = _less_busy(pair, self._rng, idle)
                if best is not None:
                    return best
        # A small set, or most are full: look at everyone rather than give up. The router stops
        # asking once this says None, until something changes.
        return _less_busy(peers, self._rng, idle)


def _less_busy(peers: Sequence[Peer], rng: random.Random, idle: list[Peer]) -> Peer | None:
    best: Peer | None = None
    best_load = 0
    ties = 1
    for peer in peers:
        if not peer.has_room:
            if peer.state is PeerState.IDLE:
                idle.append(peer)
            continue
        load = peer.load
        if best is None or load < best_load:
            best, best_load, ties = peer, load, 1
        elif load == best_load:
            # The n-th of equals replaces the one before with a chance of 1/n: each is as likely in
            # the end, and no list of them is made. Otherwise an idle set would fill from one end.
            ties += 1
            if rng.randrange(ties) == 0:
                best = peer
    return best
