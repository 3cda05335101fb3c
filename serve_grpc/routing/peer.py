"""What a caller knows of one replica: who it is, whether it can be reached, how busy it is.

The control plane gives the facts of `ReplicaFacts`; the session gives state and load. One peer is
shared by all handles of a process that use the same event loop.

The state of a replica moves by these rules, and by `Peer.become` alone:

- IDLE until a call needs a session. Then CONNECTING, but not for long: a replica that takes its
  time counts as LOST, while the session goes on being opened.
- Any message of an open session makes it READY. Silence makes it SUSPECT, the end of the session
  LOST; from there a new session leads back to READY, never to CONNECTING, so that calls which
  prefer this replica wait for it only once.
- GONE is final. The replica drains, or the control plane does not list it any more: calls that are
  there go on, no other is sent, and no session is opened after this one.

Whether there is room is no state: `blocked`, `penalised` and the load tell of a READY replica.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from serve_grpc.states import Moves, check_move

__all__ = ["MOVES", "Peer", "PeerState", "ReplicaFacts"]


class PeerState(enum.Enum):
    """Whether calls may be sent to a replica, and if not, what is being done about it."""

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


# Looking one up on the class of an enum is a call on CPython 3.10 and 3.11.
_IDLE, _CONNECTING, _READY = PeerState.IDLE, PeerState.CONNECTING, PeerState.READY
_SUSPECT, _LOST, _GONE = PeerState.SUSPECT, PeerState.LOST, PeerState.GONE

MOVES: Moves[PeerState] = {
    _IDLE: frozenset({_CONNECTING, _GONE}),
    _CONNECTING: frozenset({_READY, _LOST, _GONE}),
    _READY: frozenset({_SUSPECT, _LOST, _GONE}),
    _SUSPECT: frozenset({_READY, _LOST, _GONE}),
    _LOST: frozenset({_READY, _GONE}),
    _GONE: frozenset(),
}


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
        serializers: The only ones it takes; None for all.
        local_path: Of the socket that callers on its node may use, "" if it has none.
        takes_inputs: Whether arguments of its calls may be streams.
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
    serializers: frozenset[str] | None = None
    local_path: str = ""
    takes_inputs: bool = False


class Peer:
    """Facts, state and load of one replica.

    Attributes:
        state: Read freely; written by `become`.
        in_flight: Calls of this process that the replica has not answered: one more for each that
            is sent (`on_sent`), one less when it leaves (`Delivery`). Counted nowhere else.
        carrier: What carries its open session ("grpc", "local"), "" while there is none.
        reported: Requests that ran on the replica when it last said so, and those sent since.
        standby: How many more than it runs may be sent, for their slots will be free in a moment.
        blocked: It turned a call of ours away and has not called back since.
        penalised: Nearly all of its calls fail where those of others do not: it gets none, except
            one at a time while `may_probe`.
        may_probe: Whether it is time to see if it has recovered.
    """

    __slots__ = (
        "blocked",
        "carrier",
        "facts",
        "in_flight",
        "may_probe",
        "penalised",
        "reported",
        "standby",
        "state",
    )

    def __init__(self, facts: ReplicaFacts) -> None:
        self.facts = facts
        self.state = PeerState.IDLE
        self.in_flight = 0
        self.carrier = ""
        self.reported = 0
        self.standby = 0
        self.blocked = False
        self.penalised = False
        self.may_probe = False

    def __repr__(self) -> str:
        blocked = (" blocked" if self.blocked else "") + (" penalised" if self.penalised else "")
        return (
            f"<Peer {self.facts.replica_id} {self.state.value}{blocked} load {self.load}"
            f"/{self.facts.max_ongoing_requests}>"
        )

    def become(self, state: PeerState) -> bool:
        """Move to a state; returns whether it is another one.

        Raises:
            IllegalMoveError: It is no move of `MOVES`; only in tests.
        """
        before = self.state
        check_move(MOVES, self, before, state)
        self.state = state
        return state is not before

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
        if self.state is not _READY or self.blocked:
            return False
        if self.penalised:
            return self.may_probe and self.in_flight == 0
        return self.in_flight == 0 or self.load < self.facts.max_ongoing_requests

    @property
    def has_standby_room(self) -> bool:
        """Whether a call may be sent to wait there for a slot."""
        return (
            self.load < self.facts.max_ongoing_requests + self.standby
            and self.state is _READY
            and not self.blocked
            and not self.penalised
        )

    @property
    def has_slot(self) -> bool:
        """As both above, for a call that may go nowhere else: a penalty does not keep it out."""
        if self.state is not _READY or self.blocked:
            return False
        return self.in_flight == 0 or self.load < self.facts.max_ongoing_requests + self.standby

    def on_sent(self) -> None:
        """Count one call as sent."""
        # On top of what the replica reported: `load` is the larger of the two, and would not grow
        # with our first calls to a replica that others keep busy.
        self.in_flight += 1
        self.reported += 1

    def on_report(self, load: int, standby: int = 0) -> None:
        """Take the replica's own numbers, with our requests that it had not read by then."""
        self.reported = load
        self.standby = standby

    def penalise(self) -> None:
        """Send it nothing until `may_probe` is set."""
        self.penalised, self.may_probe = True, False

    def pardon(self) -> None:
        """Let it have calls as any other."""
        self.penalised = self.may_probe = False
