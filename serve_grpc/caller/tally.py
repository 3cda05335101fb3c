"""What is counted of calls and sessions, and how it reaches Ray's metrics.

A call costs an append here; everything else is done once a second, in `report`. Calls end in any
thread, so their outcomes are folded under a lock; the rest belongs to the router's loop, and may be
read from anywhere. A loop has one `CallerMetrics`, as it has one pool of connections; it ticks
while there are routers.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter

from serve_grpc._serve.routers import RouterAdapter
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.replicas import Replicas
from serve_grpc.carriers.counters import Counters
from serve_grpc.foreign import run_foreign
from serve_grpc.metrics import Levels, Ticker, Totals, TrafficMetrics, caller_tags

__all__ = ["CallerMetrics", "Tally", "caller_metrics_of"]


class Tally:
    """Numbers of one router. Everything but `outcomes` is called on its loop.

    Attributes:
        deployment: Application and name.
        replicas: The deployment's; None until the router has begun.
        ended: For each call that ended, the kind of its outcome; appended to from any thread.
        resolutions_ms: For each call with responses among its arguments, how long they took.
        counters: Of the deployment's connections on this loop, once there is a reporter.
        waiting: Calls in the router's line, or before its entrance.
        rejections: How often a full or draining replica turned a call away.
        retries: How often a call was repeated after its session was lost.
    """

    def __init__(self, adapter: RouterAdapter) -> None:
        self._adapter = adapter
        self.replicas: Replicas | None = None
        self._folding = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._waits_ms: list[float] = []
        self._waited = self._told_at_once = 0
        self._resolved = self._told_without = 0
        self.deployment = adapter.app_name, adapter.deployment_name
        self.ended: list[str] = []
        self.resolutions_ms: list[float] = []
        self.counters = Counters()
        self.waiting = 0
        self.rejections = 0
        self.retries = 0
        tags = caller_tags(adapter.deployment_name, adapter.app_name, adapter.actor_id)
        self._calls = Totals("serve_grpc_calls", "Calls that ended.", tags, key="outcome")
        self._rejections = Totals(
            "serve_grpc_rejections", "Calls that a full replica turned away; they wait.", tags
        )
        self._retries = Totals(
            "serve_grpc_retries", "Calls repeated after a session was lost.", tags
        )

    # ------------------------------------------------------------ notes

    def on_queued(self, delivery: Delivery) -> None:
        """A call waits, perhaps again; its wait began with the first time."""
        self.waiting += 1
        delivery.queued_s = delivery.queued_s or time.monotonic()
        # At once, for Serve's number decides on the next call; guarded, for the metric is Serve's.
        run_foreign("count a call that waits", self._adapter.on_queued)

    def on_unqueued(self) -> None:
        """It no longer does."""
        self.waiting -= 1
        run_foreign("count a call that waits no longer", self._adapter.on_unqueued)

    def on_waited(self, delivery: Delivery) -> None:
        """A call that had to wait was sent."""
        self._waits_ms.append((time.monotonic() - delivery.queued_s) * 1000)

    # ------------------------------------------------------------ what came of it

    def outcomes(self) -> dict[str, int]:
        """How many calls ended in which way; from any thread."""
        with self._folding:
            # Appended to meanwhile, at the end; each of these steps is one for the interpreter.
            ended = self.ended[:]
            del self.ended[: len(ended)]
            self._outcomes.update(ended)
            return dict(self._outcomes)

    def report(self) -> None:
        """Tell Ray's and Serve's metrics what was added since the last time."""
        for outcome, total in self.outcomes().items():
            self._calls.tell(total, outcome)
        self._rejections.tell(self.rejections)
        self._retries.tell(self.retries)
        self._report_as_serve_does()

    def _report_as_serve_does(self) -> None:
        adapter, metrics = self._adapter, self._adapter.request_router_metrics
        waits_ms, self._waits_ms = self._waits_ms, []
        resolutions_ms, self.resolutions_ms = self.resolutions_ms, []
        self._waited += len(waits_ms)
        self._resolved += len(resolutions_ms)
        # All the others; the adapter tells its totals a moment later than the notes are taken.
        at_once = max(0, adapter.sent - self._waited - self._told_at_once)
        without = max(0, adapter.calls - self._resolved - self._told_without)
        self._told_at_once += at_once
        self._told_without += without
        metrics.on_waits(waits_ms, at_once)
        metrics.on_resolved(resolutions_ms, without)
        if self.replicas is not None:
            is_full = self.waiting > 0 and len(self.replicas) > 0
            metrics.set_tasks(routing=int(self.waiting > 0), in_backoff=int(is_full))
            metrics.set_loads({p.facts.replica_id: p.load for p in self.replicas.held})


class CallerMetrics:
    """Reports for the routers of one loop, and for the connections that they share."""

    def __init__(self, pool: ConnectionPool, actor_id: str) -> None:
        self._pool = pool
        self._actor_id = actor_id
        self._tallies: set[Tally] = set()
        self._counters: dict[tuple[str, str], tuple[TrafficMetrics, Totals]] = {}
        self._ticker = Ticker("caller", actor_id, self._report)

    def add(self, tally: Tally) -> None:
        """Report what it counts, from now on."""
        tally.counters = self._pool.counters[tally.deployment]
        self._tallies.add(tally)
        self._ticker.start()

    def remove(self, tally: Tally) -> None:
        """Report what it counted, a last time."""
        if tally in self._tallies:
            self._tallies.remove(tally)
            tally.report()
            if not self._tallies:
                self._ticker.stop()

    def _report(self) -> None:
        for tally in self._tallies:
            tally.report()
        for (application, deployment), counters in self._pool.counters.items():
            known = self._counters.get((application, deployment))
            if known is None:
                tags = caller_tags(deployment, application, self._actor_id)
                text = "Sessions that took gRPC because the local lane could not be had."
                fallbacks = Totals("serve_grpc_local_fallbacks", text, tags)
                known = TrafficMetrics("serve_grpc", tags), fallbacks
                self._counters[application, deployment] = known
            traffic, fallbacks = known
            traffic.tell(counters)
            fallbacks.tell(counters.local_fallbacks)
        _sessions.report(self._pool, self._actor_id)


class _Sessions:
    """The gauge of sessions, of all loops of the process: they would overwrite each other's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_pool: weakref.WeakKeyDictionary[
            ConnectionPool, Counter[tuple[str, str, str, str]]
        ] = weakref.WeakKeyDictionary()
        self._gauge: Levels | None = None

    def report(self, pool: ConnectionPool, actor_id: str) -> None:
        with self._lock:
            if self._gauge is None:
                tag_keys = (*caller_tags("", "", ""), "state", "carrier")
                text = "Sessions with replicas, by state and by what carries them."
                self._gauge = Levels("serve_grpc_sessions", text, tag_keys)
            self._of_pool[pool] = pool.states()
            counted: Counter[tuple[str, ...]] = Counter()
            for other, states in self._of_pool.items():
                if other.is_alive:
                    for (application, deployment, state, carrier), number in states.items():
                        key = deployment, application, actor_id, state, carrier
                        counted[key] += number
            self._gauge.tell(counted)


_sessions = _Sessions()
_reporters: weakref.WeakKeyDictionary[ConnectionPool, CallerMetrics] = weakref.WeakKeyDictionary()
_reporters_lock = threading.Lock()


def caller_metrics_of(pool: ConnectionPool, actor_id: str) -> CallerMetrics:
    """The reporter of a pool's loop; on that loop."""
    with _reporters_lock:
        reporter = _reporters.get(pool)
        if reporter is None:
            # A reporter knows its pool, so the table alone would keep both for ever.
            for dead in [other for other in _reporters if not other.is_alive]:
                del _reporters[dead]
            reporter = _reporters[pool] = CallerMetrics(pool, actor_id)
        return reporter
