"""What a caller knows of one replica: who it is, whether it can be reached, how busy it is.

The control plane gives the facts of `ReplicaFacts`; the session gives state and load. One peer is
shared by all handles of a process that use the same event loop.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Peer", "PeerState", "ReplicaFacts"]


class PeerState(enum.Enum):
    """Whether calls may be sent."""

    IDLE = "idle"
    """No session was needed yet."""
    CONNECTING = "connecting"
    """Its first session is about to open; calls that prefer this replica wait for it."""
    READY = "ready"
    SUSPECT = "suspect"
    """Silent for longer than the heartbeat allows; its calls go on, new ones go elsewhere."""
    LOST = "lost"
    """The session failed, or takes long to open; it is tried again and again."""
    GONE = "gone"
    """Draining, or no longer in the control plane's set."""


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What Ray Serve's control plane says of a running replica.

    Attributes:
        replica_id: Unique id.
        address: "host:port" of its endpoint, "" if it has none.
        node_id, zone: Where it runs.
        model_ids: Multiplexed models it holds.
        max_ongoing_requests: How many requests it runs at once.
        actor_id: Of its actor, for errors; "" if not known.
        deployment, application: What it is a replica of, for metrics.
    """

    replica_id: str
    address: str
    node_id: str = ""
    zone: str = ""
    model_ids: frozenset[str] = frozenset()
    max_ongoing_requests: int = 1
    actor_id: str = ""
    deployment: str = ""
    application: str = ""


class Peer:
    """Facts, state and load of one replica.

    Attributes:
        in_flight: Calls of this process that the replica has not answered.
        reported: Requests that ran on the replica when it last said so.
        blocked: It turned a call of ours away and has not called back since.
    """

    __slots__ = ("blocked", "facts", "in_flight", "reported", "state")

    def __init__(self, facts: ReplicaFacts) -> None:
        self.facts = facts
        self.state = PeerState.IDLE
        self.in_flight = 0
        self.reported = 0
        self.blocked = False

    def __repr__(self) -> str:
        blocked = " blocked" if self.blocked else ""
        return (
            f"<Peer {self.facts.replica_id} {self.state.value}{blocked} load {self.load}"
            f"/{self.facts.max_ongoing_requests}>"
        )

    @property
    def load(self) -> int:
        """Best guess of the requests running there."""
        # Not max(): this is asked twice for every call.
        return self.reported if self.reported > self.in_flight else self.in_flight

    @property
    def has_room(self) -> bool:
        """Whether a call may be sent now.

        Load that others cause is only believed while an answer of our own is due, which brings
        fresh numbers; otherwise a stale report would keep this caller out for ever.
        """
        if self.state is not PeerState.READY or self.blocked:
            return False
        return self.in_flight == 0 or self.load < self.facts.max_ongoing_requests

    def on_sent(self) -> None:
        """Count one call as sent."""
        self.in_flight += 1
        self.reported += 1

    def on_report(self, ongoing: int) -> None:
        """Take the replica's own number."""
        self.reported = ongoing
