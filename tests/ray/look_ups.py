"""Which actors of replicas this process looks up, and in which threads."""

from __future__ import annotations

import threading

import pytest
from ray.serve._private.common import RunningReplicaInfo

__all__ = ["LookUps", "counted_look_ups"]


class LookUps:
    """Of actors, by this process: ids of the replicas, and the threads."""

    def __init__(self) -> None:
        self.replicas: list[str] = []
        self.threads: set[int] = set()


def counted_look_ups(monkeypatch: pytest.MonkeyPatch) -> LookUps:
    """Those from now on."""
    found, get = LookUps(), RunningReplicaInfo.get_actor_handle

    def counting(info: RunningReplicaInfo) -> object:
        found.replicas.append(info.replica_id.unique_id)
        found.threads.add(threading.get_ident())
        return get(info)

    monkeypatch.setattr(RunningReplicaInfo, "get_actor_handle", counting)
    return found
