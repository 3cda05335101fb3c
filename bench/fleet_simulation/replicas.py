"""Simulated replicas: real admission and standing by, and handlers that take a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from bench.fleet_simulation.clock import Clock
from serve_grpc.replica.admission import Admission
from serve_grpc.routing.peer import ReplicaFacts

__all__ = ["SimulatedReplica", "Stream"]


class Stream(Protocol):
    """An open session, as its replica knows it.

    Attributes:
        is_open: Whether it still is.
        read: How many requests were read.
    """

    is_open: bool
    read: int

    def answer(self, call_id: int, *, is_failed: bool) -> None:
        """The call is over."""

    def kick(self) -> None:
        """Send what is to be said."""

    def cut(self) -> None:
        """The replica is gone."""


class _Request:
    """In the place of an `Invocation`."""

    __slots__ = ("call_id", "stream")
    is_followed = False
    request_id = ""

    def __init__(self, stream: Stream, call_id: int) -> None:
        self.stream, self.call_id = stream, call_id


class SimulatedReplica:
    """One replica; to its admission it is the `ReplicaAdapter`.

    Args:
        name: Its id.
        clock: The time.
        slots: `max_ongoing_requests`.
        work_s: Draws how long a call takes, in seconds.
        on_start: Told of each call that gets a slot, by session and id.

    Attributes:
        fails: Whether its calls end with an exception of the user's, at once.
        is_up: Whether its process is alive.
        sessions: That are open.
        busy_s: Seconds of slots that were taken, of all together.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        slots: int,
        work_s: Callable[[], float],
        on_start: Callable[[Stream, int], None],
        zone: str = "",
    ) -> None:
        self.facts = ReplicaFacts(
            name, f"{name}:1", max_ongoing_requests=slots, zone=zone, deployment="d"
        )
        self.main_loop = clock
        self.max_ongoing_requests = slots
        self.slowness = 1.0
        self.fails = False
        self.is_up = True
        self.sessions: set[Stream] = set()
        self.active = 0  # sessions that have sent a request
        self.running = 0
        self.busy_s = 0.0
        self._since_s = clock.now_s
        self._work_s = work_s
        self._on_start = on_start
        self._tell: Callable[[], None] = lambda: None
        adapter: Any = self
        self.admission = Admission(adapter, self._use_slot, self._turn_away)

    # ------------------------------------------------------------ as a `ReplicaAdapter`

    def ongoing(self) -> int:
        return self.running

    def _count(self, change: int) -> None:
        now_s = self.main_loop.now_s
        self.busy_s += self.running * (now_s - self._since_s)
        self._since_s = now_s
        self.running += change

    def settle(self) -> float:
        """Seconds of slots that were taken up to now."""
        self._count(0)
        return self.busy_s

    def try_admit(self) -> bool:
        if self.running >= self.max_ongoing_requests:
            return False
        self._count(1)
        return True

    def release(self) -> None:
        self._count(-1)
        self._tell()

    def on_slot_released(self, callback: Callable[[], None]) -> None:
        self._tell = callback

    # ------------------------------------------------------------ requests

    def standby(self) -> int:
        """As `ReplicaDispatcher.standby`."""
        return self.admission.standby_size() // max(1, self.active)

    def on_request(self, stream: Stream, call_id: int) -> None:
        """As `ReplicaDispatcher` does with each."""
        if not stream.is_open:
            return
        stream.read += 1
        if stream.read == 1:
            self.active += 1
        request: Any = _Request(stream, call_id)
        if self.admission.take_slot(""):
            self._run(request)
        elif self.admission.has_standby_room():
            self.admission.stand_by(request)
        else:
            self._turn_away(request)

    def _turn_away(self, request: Any) -> None:
        self.admission.turn_away(request.stream, request.call_id, "")
        request.stream.kick()

    def _run(self, request: _Request) -> None:
        if not request.stream.is_open:
            self.admission.give_back()
            return
        self._on_start(request.stream, request.call_id)
        work_s = 0.0005 if self.fails else self._work_s() * self.slowness
        self.main_loop.at(work_s, self._end, request, work_s)

    def _end(self, request: _Request, work_s: float) -> None:
        # As the executor: the slot passes to who stands by, or is given back.
        self.admission.standby.on_duration(work_s * 1000)
        if self.admission.standby.queue:
            self._use_slot()
        else:
            self.admission.give_back()
        request.stream.answer(request.call_id, is_failed=self.fails)

    def _use_slot(self) -> None:
        request = self.admission.standby.take()
        if request is None:
            self.admission.give_back()
        else:
            as_request: Any = request
            self._run(as_request)

    # ------------------------------------------------------------ its life

    def leave(self) -> None:
        """Its process is gone; so are its sessions."""
        self.is_up = False
        for session in tuple(self.sessions):
            session.cut()
