"""What the control plane says of a replica, as facts of ours, and what changed between two lists.

A replica publishes its endpoint in the metadata that Serve spreads with its list of replicas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_grpc.carriers.local.paths import MAX_SOCKET_PATH_BYTES
from serve_grpc.routing.peer import ReplicaFacts

__all__ = ["ENDPOINT_KEY", "Endpoint", "ReplicaNews", "actor_id_of", "facts_of", "has_endpoint"]

ENDPOINT_KEY = "serve_grpc"
"""Key of our entry in `RunningReplicaInfo.replica_metadata`; callers and replicas of two releases
meet there, so it cannot change."""


@dataclass(frozen=True)
class Endpoint:
    """What a replica publishes about its data plane. Args: as of `ReplicaFacts`."""

    address: str
    actor_id: str
    serializers: frozenset[str] | None = None
    local_path: str = ""

    def as_metadata(self) -> dict[str, Any]:
        """The entry in the replica's metadata."""
        entry: dict[str, Any] = {"address": self.address, "actor_id": self.actor_id}
        entry["inputs"] = True  # a version that takes none says nothing
        if self.serializers is not None:
            entry["serializers"] = sorted(self.serializers)
        if self.local_path:
            entry["local_path"] = self.local_path
        return {ENDPOINT_KEY: entry}


@dataclass(frozen=True)
class ReplicaNews:
    """What is other in a list of replicas than in the one before; often nothing.

    Attributes:
        changed: Those that are listed now, and new or with other facts than before.
        gone: Ids of those that were listed and are not now.
    """

    changed: tuple[ReplicaFacts, ...] = ()
    gone: tuple[str, ...] = ()

    def parts(self, size: int) -> Iterator[ReplicaNews]:
        """The same in pieces of at most `size` replicas; those that are gone come first."""
        for start in range(0, len(self.gone), size):
            yield ReplicaNews((), self.gone[start : start + size])
        for start in range(0, len(self.changed), size):
            yield ReplicaNews(self.changed[start : start + size])


def facts_of(info: Any) -> ReplicaFacts:
    """What a `RunningReplicaInfo` says."""
    endpoint = _published(info)
    serializers = endpoint.get("serializers")
    return ReplicaFacts(
        replica_id=info.replica_id.unique_id,
        deployment=info.replica_id.deployment_id.name,
        application=info.replica_id.deployment_id.app_name,
        address=endpoint.get("address", ""),
        actor_id=endpoint.get("actor_id", ""),
        node_id=info.node_id or "",
        zone=info.availability_zone or "",
        model_ids=frozenset(info.multiplexed_model_ids),
        max_ongoing_requests=info.max_ongoing_requests,
        serializers=None if serializers is None else frozenset(serializers),
        local_path=_local_path(endpoint.get("local_path")),
        takes_inputs=endpoint.get("inputs") is True,
    )


def has_endpoint(info: Any) -> bool:
    """Whether a `RunningReplicaInfo` names an endpoint of ours."""
    return bool(_published(info).get("address"))


def actor_id_of(info: Any) -> str:
    """Of the replica's actor, in hex; "" if it does not say."""
    actor_id = _published(info).get("actor_id")
    return actor_id if isinstance(actor_id, str) else ""


def _published(info: Any) -> dict[str, Any]:
    published = info.replica_metadata.get(ENDPOINT_KEY)
    return published if isinstance(published, dict) and not info.is_cross_language else {}


def _local_path(published: object) -> str:
    """As a replica published it; "" for what can be no socket's path."""
    if not isinstance(published, str) or "\0" in published or not os.path.isabs(published):
        return ""
    try:
        length = len(os.fsencode(published))
    except UnicodeEncodeError:
        return ""
    return published if length <= MAX_SOCKET_PATH_BYTES else ""
