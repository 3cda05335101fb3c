"""How the sessions of this process reach a replica: over the local lane, or over gRPC.

The lane is for replicas on this process's node, and where it cannot be had the same dial goes on
with gRPC. Invariant: the lane never keeps a caller from a replica. After a session on it that ended
before the replica let the caller in, whatever was said, the next one takes gRPC: another process of
this user may have taken the socket, and can say all that a replica says to refuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from serve_grpc._serve.cluster import node_id
from serve_grpc.caller.events import note
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.grpc import dial as grpc_carrier
from serve_grpc.carriers.link import Dial, Link, LinkLost
from serve_grpc.carriers.local import dial as local_carrier
from serve_grpc.carriers.local.paths import is_understood
from serve_grpc.config import Settings
from serve_grpc.debugging import is_debugged
from serve_grpc.routing.peer import Peer, ReplicaFacts

__all__ = ["Dialler", "dialling_by", "has_lane"]

_told: list[Dial] = []


@contextlib.contextmanager
def dialling_by(other: Dial) -> Iterator[None]:
    """Sessions that are opened in the meantime, on any loop of this process, are dialled so.

    Those that are open stay; they are dialled so when they are lost and opened again.
    """
    _told.append(other)
    try:
        yield
    finally:
        _told.remove(other)


def has_lane(facts: ReplicaFacts, settings: Settings, here: str | None = None) -> bool:
    """Whether a replica may be reached over the local lane.

    Args:
        facts: Of the replica.
        settings: Of this process.
        here: The caller's node; None to look it up.
    """
    if not settings.local or not facts.local_path:
        return False
    here = node_id() if here is None else here
    # Both nodes may be unknown, and are not the same because of that.
    return facts.node_id != "" and facts.node_id == here


class Dialler:
    """Makes the links to one replica, one after the other.

    Args:
        peer: The replica; its facts are looked at for each link.
        counters: Where it is counted that the lane could not be had.
    """

    __slots__ = ("_counters", "_has_said", "_is_lane_doubted", "_peer")

    def __init__(self, peer: Peer, counters: Counters) -> None:
        self._peer = peer
        self._counters = counters
        self._is_lane_doubted = False
        self._has_said = False

    def __repr__(self) -> str:
        return f"<Dialler of {self._peer!r}{' doubts the lane' if self._is_lane_doubted else ''}>"

    async def dial(self, address: str, settings: Settings) -> Link:
        """Is a `Dial`; the address is the replica's for gRPC."""
        if _told:
            return await _told[-1](address, settings)
        facts = self._peer.facts
        is_doubted, self._is_lane_doubted = self._is_lane_doubted, False
        if not is_doubted and has_lane(facts, settings):
            try:
                return await _dial_lane(facts.local_path, settings)
            except LinkLost as lost:
                self._on_fallback(lost.reason)
        return await grpc_carrier.dial(address, settings)

    def doubt_lane(self, reason: BaseException | str) -> None:
        """The last link was of the lane, and ended before the replica let us in."""
        self._is_lane_doubted = True
        self._on_fallback(reason)

    def _on_fallback(self, reason: BaseException | str) -> None:
        self._counters.local_fallbacks += 1
        # Once a replica: a lane that is not there is no trouble, and is tried with each session.
        if not self._has_said and is_debugged():
            self._has_said = True
            replica_id = self._peer.facts.replica_id
            note("replica %s: over gRPC, for there is no local lane: %s", replica_id, reason)


async def _dial_lane(path: str, settings: Settings) -> Link:
    if not is_understood(path):
        raise LinkLost(f"{path} is of another version of the lane")
    return await local_carrier.dial(path, settings)
