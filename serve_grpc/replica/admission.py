"""Who gets a slot: at once, in a moment (standing by), or not here (turned away). On the main loop.

Slots are those of Serve's own `max_ongoing_requests` semaphore, which requests by reference and
over HTTP share: nothing is counted twice, and Serve's autoscaling sees every request. A request
that finds none stands by where slots are about to be free (`standby`), or is turned away at once.
A session that was turned away is told, in turn, when a slot is free.

The life of a slot: taken in `take_slot`, or for who stands by in `_on_slot_released`; held while
the user's code runs. When the code is out, `Executor._end` passes the slot on to a request that
stands by, or lets it go: then `ReplicaDispatcher._on_outcome` or `on_spare_slots` gives it back.
Both do so by `give_back`, whoever had the slot and however its request ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.debugging import is_debugged
from serve_grpc.replica.debug_lines import follow
from serve_grpc.replica.invocation import Invocation
from serve_grpc.replica.standby import STAND_BY_S, StandbyQueue

__all__ = ["Admission"]


class Admission:
    """The slots of one replica, and those who wait for one. Lives on the replica's main loop.

    Args:
        replica: Serve's semaphore and counters.
        use_slot: Takes a slot for a request that stands by; may run it on another loop.
        on_late: Is told of each request for which no slot came in time.

    Attributes:
        standby: Requests that wait for a slot; the user's loop takes them from there.
        give_back: Gives a slot back to Serve; nothing else does. Serve's semaphore then calls
            `_on_slot_released`, as it does for requests by reference.
        rejections: How many requests were turned away.
    """

    def __init__(
        self,
        replica: ReplicaAdapter,
        use_slot: Callable[[], None],
        on_late: Callable[[Invocation], None],
    ) -> None:
        self._replica = replica
        self._use_slot = use_slot
        self._on_late = on_late
        self.standby: StandbyQueue[Invocation] = StandbyQueue()
        self._is_standby_watched = False
        # In order: who was turned away first is told first. Each session once.
        self._turned_away: OrderedDict[ReplicaPump, None] = OrderedDict()
        self.rejections = 0
        self.give_back: Callable[[], None] = replica.release
        replica.on_slot_released(self._on_slot_released)

    def __repr__(self) -> str:
        return f"<Admission {self.standby!r}, {len(self._turned_away)} waiting to be told>"

    # ------------------------------------------------------------ a slot's life

    def take_slot(self, reserved_slot: str) -> bool:
        """Take a slot; False if there is none, or none of that name.

        Args:
            reserved_slot: Name of one that Serve's router reserved with the replica (`reserve_slot`
                of `ray/serve/_private/replica.py`); "" for any.
        """
        if reserved_slot:
            return self._replica.try_claim(reserved_slot)
        return self._replica.try_admit()

    def _on_slot_released(self) -> None:
        # Who stands by has waited at the replica, so there is no round trip until it runs.
        if self.standby.queue and self._replica.try_admit():
            self._use_slot()
        # One free slot, one caller told: if it is turned away again, it is told again after all
        # the others.
        elif self._turned_away:
            stream, _ = self._turned_away.popitem(last=False)
            stream.session.slot_free()
            stream.kick()

    # ------------------------------------------------------------ standing by

    def standby_size(self) -> int:
        """How many may stand by now."""
        # None while sessions wait to be told of a slot: they came first.
        if self._turned_away:
            return 0
        return self.standby.size(self._replica.max_ongoing_requests)

    def has_standby_room(self) -> bool:
        """Whether one more request may stand by."""
        # Twice what callers were told: slots change hands while requests arrive that were sent by
        # an older number.
        return len(self.standby) < 2 * self.standby_size()

    def stand_by(self, invocation: Invocation) -> None:
        """Let a request wait for a slot: for `STAND_BY_S`, twice that at the most."""
        if invocation.is_followed:
            follow(invocation.request_id, "stands by for a slot")
        self.standby.add(invocation, self._replica.main_loop.time())
        self._watch_standby()

    def _watch_standby(self) -> None:
        # One timer for all: they time out in the order in which they came. Who comes just after it
        # was set is not late when it fires, and waits until the next one does.
        if self.standby and not self._is_standby_watched:
            self._is_standby_watched = True
            loop = self._replica.main_loop
            # uvloop calls timers first; what was ready when the process had to pause may be all
            # that those who stand by wait for.
            loop.call_later(STAND_BY_S, loop.call_soon, self._after_standby)

    def _after_standby(self) -> None:
        self._is_standby_watched = False
        for invocation in self.standby.take_late(self._replica.main_loop.time()):
            self._on_late(invocation)
        self._watch_standby()

    # ------------------------------------------------------------ turned away

    def turn_away(self, stream: ReplicaPump, call_id: int, request_id: str) -> None:
        """Send a request back to its caller, which is told when a slot is free."""
        if stream.session.reject(call_id):  # else its caller gave it up, and waits for no slot
            self.rejections += 1
            self._turned_away[stream] = None
            if is_debugged():
                follow(request_id, "turned away, %d run", self._replica.ongoing())

    def forget(self, stream: ReplicaPump) -> None:
        """Tell a session no more: it is over."""
        self._turned_away.pop(stream, None)
