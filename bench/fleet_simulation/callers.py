"""One calling process: the package's line and `Replicas`, before a simulated network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench.fleet_simulation.clock import Clock
from bench.fleet_simulation.replicas import SimulatedReplica
from bench.fleet_simulation.sessions import SimulatedPool
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.line import WaitingLine
from serve_grpc.caller.replicas import Replicas
from serve_grpc.mailbox import mailbox_of
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.routing.peer import ReplicaFacts
from serve_grpc.routing.retry import Backoff

__all__ = ["SimulatedCaller", "TimedDelivery"]

_ENVELOPE = Envelope("__call__", "noop", "noop", False, "", "")
_FIELDS = RequestFields(_ENVELOPE, b"", "request")


class TimedDelivery(Delivery):
    """Remembers when the call was made, and when it first ran."""

    __slots__ = ("made_s", "ran_s")

    made_s: float
    ran_s: float


class _ServesSide:
    """In the place of `RouterAdapter`, and of the `Tally`: nothing is counted for Serve."""

    is_unavailable = is_serve_gone = False
    backoff = Backoff()
    rejections = retries = waiting = 0

    def __init__(self, clock: Clock) -> None:
        self.loop = clock
        self.on_call = self.on_sent = self.on_finished = self._note
        self.on_queued = self.on_waited = self._note

    def _note(self, *_: Any) -> None:
        """Not counted."""

    on_unqueued = begin = _note


class SimulatedCaller:
    """Makes calls as its load has it, and is the user of its connections.

    Attributes:
        pool: Counts its sessions.
    """

    def __init__(
        self,
        number: int,
        clock: Clock,
        replicas: dict[str, SimulatedReplica],
        *,
        subset_size: int,
        policy: Callable[[list[str]], Iterable[str]] | None,
        on_end: Callable[[TimedDelivery, Any], None],
        zone: str = "",
    ) -> None:
        as_loop: Any = clock
        self._clock = clock
        self._mailbox = mailbox_of(as_loop)
        self._policy = policy
        self._all: dict[str, ReplicaFacts] = {}
        self._chosen: set[str] = set()
        self.pool = SimulatedPool(clock, self._mailbox, replicas)
        self.pool.users = (self,)
        pool: Any = self.pool
        self.replicas = Replicas(
            pool,
            self,
            node_id="",
            zone=zone,
            subset_size=subset_size if policy is None else 0,
            caller_id=number.to_bytes(8, "big"),
        )
        serves: Any = _ServesSide(clock)
        self.line = WaitingLine(serves, serves)
        self.line.replicas = self.replicas
        self.line.watch = serves
        self.line.take_early = list
        self.line.feed = Feed(is_ready=True)
        # Whoever ends a call tells: there is no consumer here.
        on_end_: Any = on_end
        self.line.on_end = on_end_

    def update(self, changed: list[ReplicaFacts], gone: list[str]) -> None:
        """News of the control plane."""
        if self._policy is None:
            self.replicas.update(changed, gone)
        else:
            self._update_chosen(changed, gone)
        self.line.pump()

    def _update_chosen(self, changed: list[ReplicaFacts], gone: list[str]) -> None:
        assert self._policy is not None
        for replica_id in gone:
            del self._all[replica_id]
        self._all.update({facts.replica_id: facts for facts in changed})
        chosen = set(self._policy(list(self._all)))
        came = [self._all[one] for one in chosen - self._chosen]
        self.replicas.update(came, self._chosen - chosen)
        self._chosen = chosen

    def call(self) -> None:
        """Make one call, as `Admission` lets it in."""
        call = Call(_FIELDS, self._mailbox, bytes)
        delivery = TimedDelivery(call, self.line, is_idempotent=True)
        delivery.made_s = self._clock.now_s
        delivery.ran_s = 0.0
        self.line.on_new_call()
        self._mailbox.enter(self.line.route, delivery, self.line.pick_for_new(delivery))

    def on_change(self, connection: Connection) -> None:
        """As the router."""
        self.line.on_change(connection)
