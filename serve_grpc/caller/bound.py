"""Calls that may go to one replica only, and the choice of one to bind calls to.

A bound call was given its replica before it was made, so there is nothing to choose: it goes there,
waits for room there, or ends with `Unavailable`; never to another replica. For a replica that has
room, bound calls and those of the line take turns, first come, first served. On the router's loop.

Invariants: a bound call that waits stands in the queue of a connection that the router holds and
that is not GONE. A call whose session was lost waits again only if it did not start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.routers import RouterAdapter
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.events import note
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.outcomes import GivenUp, Lost, Outcome, Raised, Unavailable, Value
from serve_grpc.caller.replicas import Replicas
from serve_grpc.caller.tally import Tally
from serve_grpc.caller.waking import BackoffTimer
from serve_grpc.debugging import is_debugged
from serve_grpc.routing.line import Line
from serve_grpc.routing.peer import PeerState
from serve_grpc.routing.picker import OPENING

__all__ = ["Beside", "Bound", "BoundCalls", "Choice", "not_bindable"]

FAILURES = 2
"""A session that broke may be one broken connection: one that cannot be opened again is a replica
that cannot be reached, and its calls wait no longer."""


def not_bindable(reason: str) -> str:
    """Why calls cannot be bound where no session of ours carries them, and what would work.

    Args:
        reason: What follows "the deployment".
    """
    return (
        f"calls cannot be bound to one replica, because the deployment {reason}. It must be opted "
        "in (serve_grpc.deployment or serve_grpc.enable) and be called from within the cluster; "
        "without `replica_id` or `pin()`, calls go over Ray Serve's own transport"
    )


class Beside(Protocol):
    """The line of the calls that may go anywhere; its attributes are those of `WaitingLine`."""

    replicas: Replicas
    feed: Feed
    backoff: BackoffTimer
    closed_reason: str | None

    @property
    def sequence(self) -> Iterator[int]:
        """Numbers calls in the order in which they were let in."""

    @property
    def is_over(self) -> bool:
        """Whether no replica will come."""

    def why_over(self, delivery: Delivery) -> Outcome:
        """How a call ends then."""

    def count(self, delivery: Delivery, *, is_refused: bool = False) -> None:
        """Count it as made, and as let in."""

    def watch_serve(self) -> None:
        """See whether Serve is still there while calls wait for it."""

    def ensure_progress(self) -> None:
        """If only a replica that turned a call away could take one, look again after a pause."""


class Choice(Delivery):
    """The choice of a replica, as it is made for a call: it waits in line and is sent nowhere.

    Its call ends with the replica's id. It is not counted among the calls.
    """

    __slots__ = ()

    def send(self, connection: Connection, *, is_new: bool = False) -> bool:
        """End with what was chosen; False, for nothing was sent."""
        self.end(Value(connection.peer.facts.replica_id))
        return False


class Bound:
    """The chooser of one call that is bound: which replica that is, and what becomes of the call.

    Args:
        room: Of the router.
        replica_id: Serve's unique id.
    """

    on_end = None

    def __init__(self, room: BoundCalls, replica_id: str) -> None:
        self.replica_id = replica_id
        self._room = room
        self.on_sent, self.on_left = room.on_sent, room.on_left

    def __repr__(self) -> str:
        return f"<Bound to {self.replica_id}>"

    # ------------------------------------------------------------ what is behind the entrance

    @property
    def feed(self) -> Feed:
        """As of the line, but that a request router of the deployment's own has no say here."""
        return self._room.feed

    def leave_to_serve(self, delivery: Delivery) -> None:
        """The deployment has no endpoint."""
        self._room.line.count(delivery, is_refused=True)
        delivery.end(GivenUp(not_bindable(self.feed.fallback_reason or "is not known")))

    def pick_for_new(self, delivery: Delivery) -> Connection | None:
        """The connection to its replica if that takes the call now."""
        return self._room.connection_with_room(self.replica_id)

    def refusal(self, delivery: Delivery, *, is_full: bool) -> Outcome | None:
        """Why it may not even wait."""
        return self._room.refusal(self.replica_id, is_full=is_full)

    def count(self, delivery: Delivery, *, is_refused: bool = False) -> None:
        """As for any call."""
        self._room.line.count(delivery, is_refused=is_refused)

    def route(self, delivery: Delivery, connection: Connection | None) -> None:
        """Send a call that was let in, or let it wait."""
        delivery.sequence = next(self._room.line.sequence)
        self._room.line.count(delivery)
        if connection is not None:
            delivery.send(connection, is_new=True)
        else:
            self._room.wait(delivery, self.replica_id)

    def watch_serve(self) -> None:
        """See whether Serve is still there."""
        self._room.line.watch_serve()

    # ------------------------------------------------------------ what becomes of a sent call

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        """Failures are not held against the replica: whoever is bound may send it bad input."""
        self._room.line.backoff.times = 0  # as in the line: slots do come free

    def on_rejected(self, delivery: Delivery, connection: Connection) -> None:
        """The replica was full, or drains: wait for it, or end."""
        self._room.tally.rejections += 1
        self._room.wait(delivery, self.replica_id)

    def on_ready(self, delivery: Delivery) -> None:
        """The call can go to its replica now."""
        self._room.wait(delivery, self.replica_id)
        self._room.pump()

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        """A call that did not start waits for the same replica again, if that may come back.

        One that may have started is not repeated, even if it is idempotent: what it needs of this
        replica may have gone with the connection.
        """
        if lost.may_have_started or self._room.line.closed_reason is not None:
            return False
        self._room.wait(delivery, self.replica_id)
        if not delivery.done:
            self._room.tally.retries += 1
        return True

    def trouble(self) -> str:
        """Why its replica cannot be reached, if that is so."""
        connection = self._room.line.replicas.connection_to(self.replica_id)
        if connection is None or not connection.trouble.reason:
            return ""
        return f"cannot reach replica {connection.trouble}"


@dataclass(slots=True)
class _Queue:
    """Those that wait for one replica.

    Attributes:
        calls: In order; some may have ended.
        waiting: How many have not.
        failures: Of the replica's session in a row, when the first of them came.
    """

    failures: int
    calls: Line[Delivery] = field(default_factory=Line)
    waiting: int = 0


class BoundCalls:
    """Those of one router; the stage of each that waits.

    Args:
        line: Of the router's other calls.
        adapter: To Serve's router.
        tally: Where it is counted who waits.

    Attributes:
        line, tally: As given.
        feed: What is known of the deployment, as far as it concerns bound calls.
        on_sent, on_left: Serve's accounting of requests on replicas.
    """

    may_have_started = False

    def __init__(self, line: Beside, adapter: RouterAdapter, tally: Tally) -> None:
        self.line = line
        self.tally = tally
        self.feed = Feed()
        self.on_sent, self.on_left = adapter.on_sent, adapter.on_finished
        self._adapter = adapter
        self._queues: dict[str, _Queue] = {}

    def __bool__(self) -> bool:
        """Whether the news of a replica may concern one of them."""
        return bool(self._queues)

    def __repr__(self) -> str:
        return f"<BoundCalls { {name: queue.waiting for name, queue in self._queues.items()} }>"

    @property
    def has_waiting(self) -> bool:
        """Whether one of them waits."""
        return any(queue.waiting for queue in self._queues.values())

    def to(self, replica_id: str) -> Bound:
        """The chooser of a new call; from any thread."""
        return Bound(self, replica_id)

    # ------------------------------------------------------------ new calls

    def connection_with_room(self, replica_id: str) -> Connection | None:
        """The connection if it takes a new call now, and nobody waits for it."""
        connection = self.line.replicas.connection_to(replica_id)
        if connection is None or not _takes_call(connection):
            return None
        queue = self._queues.get(replica_id)
        return connection if queue is None or not queue.waiting else None

    def refusal(self, replica_id: str, *, is_full: bool) -> Outcome | None:
        """Why a new call may not wait: its replica is not there, or `max_queued_requests` wait."""
        found = self._find(replica_id)
        if isinstance(found, Unavailable):
            return found
        error = self._adapter.refusal(
            is_full=is_full, room_to_come=lambda: self._room_to_come(replica_id)
        )
        return None if error is None else Raised(error)

    def _room_to_come(self, replica_id: str) -> int:
        room = self.line.replicas.room_to_come
        if self._slots_to_come(replica_id) > 0:
            return room  # as for a call of the line: it will not have to wait
        # Room on one replica is none for those that wait for another.
        stuck = sum(max(0, -self._slots_to_come(other)) for other in self._queues)
        return min(room, max(0, self.tally.waiting - stuck))

    def _slots_to_come(self, replica_id: str) -> int:
        connection, queue = self._find(replica_id), self._queues.get(replica_id)
        slots = 0
        if not isinstance(connection, Unavailable) and connection.peer.state in OPENING:
            slots = connection.peer.facts.max_ongoing_requests
        return slots - (queue.waiting if queue is not None else 0)

    def _find(self, replica_id: str) -> Connection | Unavailable:
        connection = self.line.replicas.connection_to(replica_id)
        if connection is None:
            return Unavailable(replica_id, "it is not among the running replicas")
        if connection.peer.state is PeerState.GONE:
            return Unavailable(replica_id, "it shuts down")
        return connection

    # ------------------------------------------------------------ who waits

    def wait(self, delivery: Delivery, replica_id: str) -> None:
        """Let a call wait for its replica, where it stood before if it comes back; or end it."""
        delivery.call.replica_id = None
        if self.line.closed_reason is not None:
            delivery.end(self.line.why_over(delivery))
            return
        connection = self._find(replica_id)
        if isinstance(connection, Unavailable):
            delivery.end(connection)
            return
        queue = self._queues.get(replica_id)
        if queue is None:
            queue = self._queues[replica_id] = _Queue(connection.trouble.times)
        queue.calls.add(delivery)
        queue.waiting += 1
        delivery.stage = self
        if is_debugged():
            note("request %s: waits for %s", delivery.request_id, replica_id)
        self.tally.on_queued(delivery)
        # In the queue first: it may turn out that all is over, which ends all that wait.
        self.line.watch_serve()
        connection.connect()
        self.line.ensure_progress()

    def withdraw(self, delivery: Delivery) -> None:
        """The call waits no longer. What stays of it in its queue is passed over."""
        assert isinstance(delivery.chooser, Bound)
        delivery.stage = None
        queue = self._queues.get(delivery.chooser.replica_id)
        if queue is not None:  # else its replica is lost to all of them
            queue.waiting -= 1
        self.tally.on_unqueued()

    def grant(self, items: int, bytes_: int) -> None:
        """Nothing came of a call that waits."""

    def describe(self) -> str:
        """Where the call is."""
        return "queued"

    # ------------------------------------------------------------ news

    def pump(self) -> None:
        """Look at all replicas that calls wait for."""
        for replica_id in tuple(self._queues):
            self._look_at(replica_id)

    def on_change(self, connection: Connection) -> None:
        """Something about this replica is new."""
        self._look_at(connection.peer.facts.replica_id)

    def _look_at(self, replica_id: str) -> None:
        queue = self._queues.get(replica_id)
        if queue is None:
            return
        connection = self._find(replica_id)
        if isinstance(connection, Unavailable):
            self._lose(replica_id, connection.reason)
            return
        trouble = connection.trouble
        # Not for failures from before they came: each waits for one try to reach the replica.
        if connection.is_down and trouble.times >= FAILURES and trouble.times != queue.failures:
            self._lose(replica_id, f"it cannot be reached: {trouble.reason}")
            return
        self._send(connection, None)
        if connection.peer.state is PeerState.READY:
            queue.failures = 0

    def send_before(self, other: Delivery, connection: Connection) -> bool:
        """Send those that came before a call of the line; whether there was one."""
        return self._send(connection, other.sequence)

    def _send(self, connection: Connection, before: int | None) -> bool:
        replica_id = connection.peer.facts.replica_id
        queue = self._queues.get(replica_id)
        has_sent = False
        while queue is not None and (delivery := queue.calls.head()) is not None:
            is_late = before is not None and delivery.sequence > before
            if is_late or not _takes_call(connection):
                return has_sent
            # Off before it is sent, as in the line: `send` may end it.
            queue.calls.pop()
            self.withdraw(delivery)
            if delivery.send(connection):
                self.tally.on_waited(delivery)
            has_sent = True
        if queue is not None:
            self._queues.pop(replica_id, None)
        return has_sent

    def _lose(self, replica_id: str, reason: str) -> None:
        for delivery in self._queues.pop(replica_id).calls:
            delivery.end(Unavailable(replica_id, reason))

    def fail_waiting(self) -> None:
        """End those that wait, for no replica will come."""
        for replica_id in tuple(self._queues):
            found = self._find(replica_id)
            if isinstance(found, Unavailable) and self.line.closed_reason is None:
                self._lose(replica_id, found.reason)
                continue
            for delivery in self._queues.pop(replica_id).calls:
                delivery.end(self.line.why_over(delivery))


def _takes_call(connection: Connection) -> bool:
    # As `Connection.takes_calls`, but a penalty is about the choice, and here there is none.
    return connection.peer.has_slot and connection.takes_bytes
