"""The replicas that the control plane lists now, and what they have in common.

Kept by changes, so that one replica more or less among thousands costs as little as among two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from serve_grpc._serve.replica_facts import ReplicaNews
from serve_grpc.routing.peer import ReplicaFacts

__all__ = ["ReplicaSet"]


class ReplicaSet:
    """Of one deployment. A replica without an endpoint is listed, but not reachable.

    Args:
        replicas: Those of the beginning.
        is_near: Whether a replica may be reached over the local lane.
    """

    def __init__(
        self,
        replicas: Iterable[ReplicaFacts] = (),
        *,
        is_near: Callable[[ReplicaFacts], bool] = lambda _: False,
    ) -> None:
        self._is_near = is_near
        self._listed: set[str] = set()
        self._reachable: dict[str, ReplicaFacts] = {}
        self._near: set[str] = set()
        self._without_inputs: set[str] = set()
        self._serializers: Counter[frozenset[str]] = Counter()
        self.update(ReplicaNews(tuple(replicas)))

    def __len__(self) -> int:
        return len(self._listed)

    def __repr__(self) -> str:
        return f"<ReplicaSet of {len(self)}, {len(self._reachable)} reachable>"

    def update(self, news: ReplicaNews) -> tuple[list[ReplicaFacts], list[str]]:
        """Take news of the list.

        Returns:
            Those to be reached from now on, new or with other facts, and the ids of those that
            were and are not.
        """
        gone = [replica_id for replica_id in news.gone if self._forget(replica_id)]
        self._listed.difference_update(news.gone)
        changed = []
        for facts in news.changed:
            was_reachable = self._forget(facts.replica_id)
            self._listed.add(facts.replica_id)
            if facts.address:
                self._add(facts)
                changed.append(facts)
            elif was_reachable:
                gone.append(facts.replica_id)
        return changed, gone

    def _add(self, facts: ReplicaFacts) -> None:
        replica_id = facts.replica_id
        self._reachable[replica_id] = facts
        if facts.serializers is not None:
            self._serializers[facts.serializers] += 1
        if not facts.takes_inputs:
            self._without_inputs.add(replica_id)
        if self._is_near(facts):
            self._near.add(replica_id)

    def _forget(self, replica_id: str) -> bool:
        facts = self._reachable.pop(replica_id, None)
        if facts is None:
            return False
        if facts.serializers is not None:
            self._serializers[facts.serializers] -= 1
            if not self._serializers[facts.serializers]:
                del self._serializers[facts.serializers]
        self._without_inputs.discard(replica_id)
        self._near.discard(replica_id)
        return True

    @property
    def has_reachable(self) -> bool:
        """Whether one of them has an endpoint of ours."""
        return bool(self._reachable)

    @property
    def has_near(self) -> bool:
        """Whether one of them may be reached over the local lane."""
        return bool(self._near)

    @property
    def takes_inputs(self) -> bool:
        """Whether arguments may be streams, whichever reachable replica gets the call."""
        return not self._without_inputs

    @property
    def serializers(self) -> frozenset[str] | None:
        """Those that every reachable replica takes; None for all."""
        return frozenset.intersection(*self._serializers) if self._serializers else None
