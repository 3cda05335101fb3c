"""Which replica fails nearly all calls of a kind that other replicas do well.

A user's exception is mostly the input's fault. It tells against a replica only beside others that
do better at the same work: the same method, asked for by the same caller. Calls for a multiplexed
model are not compared: one replica holds the model, and gets all the bad input for it.
"""

from __future__ import annotations

from itertools import islice

from serve_grpc.routing.peer import Peer, PeerState

__all__ = ["Outliers"]

WEIGHT = 0.1
"""Of one outcome in a replica's share of failures, so that about the last twenty count."""
UNKNOWN = 0.5
"""The share before the first outcome."""
POOR = 0.9
"""With a larger share a replica may be an outlier: after 16 failures without a success,"""
FAIR = 0.2
"""beside one with a smaller share: after 9 successes without a failure."""
QUIET = 200
"""After so many successes in a row, on all replicas together, a kind of work is not watched."""
MAX_WORKS = 64
"""Kinds of work that are watched at once. Of others nothing is kept, and nobody is penalised."""
SAMPLE = 64
"""Replicas that are looked at for a better one."""


class _Work:
    """Shares of failures at one kind of work, and how many successes there were in a row."""

    def __init__(self) -> None:
        self.shares: dict[Peer, float] = {}
        self.successes = 0


class Outliers:
    """Of the replicas of one deployment, as one router sees them. Empty while nothing fails."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    def __len__(self) -> int:
        return len(self._works)

    def __repr__(self) -> str:
        return f"<Outliers at {sorted(self._works)}>"

    def on_failure(self, peer: Peer, method: str) -> bool:
        """The user's code raised; returns whether nearly all such calls fail on this replica."""
        if peer.state is PeerState.GONE:
            return False  # its last calls come to their ends after `forget`
        work = self._works.get(method)
        if work is None:
            if len(self._works) >= MAX_WORKS:
                return False
            work = self._works[method] = _Work()
        # An exponential mean: old outcomes fade, and one number is kept for each replica.
        share = work.shares.get(peer, UNKNOWN)
        share = work.shares[peer] = share + WEIGHT * (1 - share)
        work.successes = 0
        return share > POOR

    def on_success(self, peer: Peer, method: str) -> None:
        """The user's code came to its end. Needed only while there are works."""
        work = self._works.get(method)
        if work is None or peer.state is PeerState.GONE:
            return
        work.shares[peer] = work.shares.get(peer, UNKNOWN) * (1 - WEIGHT)
        work.successes += 1
        # Then `on_success`, which runs for each call while anything is watched, has nothing to do.
        if work.successes >= QUIET:
            del self._works[method]

    def has_better(self, peer: Peer, method: str) -> bool:
        """Whether another replica that can be reached does the same work well."""
        work = self._works.get(method)
        # One that cannot be reached takes no calls in this one's place.
        return work is not None and any(
            share < FAIR and other is not peer and other.state is PeerState.READY
            for other, share in islice(work.shares.items(), SAMPLE)
        )

    def forget(self, peer: Peer) -> None:
        """Drop what is known of a replica that is gone."""
        for work in self._works.values():
            work.shares.pop(peer, None)
