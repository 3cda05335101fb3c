"""Power of two choices: of two replicas at random, the less busy one.

The load is what replicas put on their replies, so no probe is sent. Preferences (the model that
is loaded, the same node, the same zone) form tiers that are tried in order, as Ray Serve's own
request router does; only a tier without room sends the call to the next one. A tier whose replicas
are about to open their first sessions is not without room: the call waits for them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from serve_grpc.routing.peer import Peer, PeerState

__all__ = ["OPENING", "Picker"]


PAIRS = 4
"""Pairs that are tried before everyone is looked at; with half of the replicas full, one pick in
256 comes to that."""
OPENING = (PeerState.IDLE, PeerState.CONNECTING)
"""States of a peer whose first session is to come."""


class Picker:
    """Immutable view of a deployment's replicas; a new one is made when the set changes.

    Args:
        peers: The replicas that have an endpoint.
        rng: Source of randomness.
        node_id: The caller's node if it prefers local replicas, else "".
        zone: The caller's availability zone if it prefers replicas there, else "".
    """

    def __init__(
        self, peers: Iterable[Peer], *, rng: random.Random, node_id: str = "", zone: str = ""
    ) -> None:
        self.peers: tuple[Peer, ...] = tuple(peers)
        self._rng = rng
        near = [p for p in self.peers if node_id and p.facts.node_id == node_id]
        same_zone = [p for p in self.peers if zone and p.facts.zone == zone]
        self._tiers: tuple[Sequence[Peer], ...] = tuple(
            tier for tier in (near, same_zone, self.peers) if tier
        )
        self._by_model: dict[str, list[Peer]] = {}
        for peer in self.peers:
            for model_id in peer.facts.model_ids:
                self._by_model.setdefault(model_id, []).append(peer)
        fewest = min((len(p.facts.model_ids) for p in self.peers), default=0)
        self._fewest_models = [p for p in self.peers if len(p.facts.model_ids) == fewest]

    def __repr__(self) -> str:
        return f"<Picker of {len(self.peers)} replicas>"

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
        return self._by_model.get(model_id, ()), self._fewest_models, *self._tiers

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
