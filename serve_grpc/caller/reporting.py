"""Once a second, on each loop that carries calls: what was counted there goes to Ray's metrics.

A loop has one reporter, as it has one pool of connections. It ticks while there are routers.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter

from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.tally import Tally
from serve_grpc.metrics import Levels, Ticker, TrafficMetrics, caller_tags

__all__ = ["Reporter", "reporter_of"]


class Reporter:
    """Reports for the routers of one loop, and for the connections that they share."""

    def __init__(self, pool: ConnectionPool, actor_id: str) -> None:
        self._pool = pool
        self._actor_id = actor_id
        self._tallies: set[Tally] = set()
        self._traffic: dict[tuple[str, str], TrafficMetrics] = {}
        self._ticker = Ticker("caller", actor_id, self._report)

    def add(self, tally: Tally) -> None:
        """Report what it counts, from now on."""
        tally.traffic = self._pool.traffic[tally.deployment]
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
        for (application, deployment), traffic in self._pool.traffic.items():
            metrics = self._traffic.get((application, deployment))
            if metrics is None:
                tags = caller_tags(deployment, application, self._actor_id)
                metrics = TrafficMetrics("serve_grpc", tags)
                self._traffic[application, deployment] = metrics
            metrics.tell(traffic)
        _sessions.report(self._pool, self._actor_id)


class _Sessions:
    """The gauge of sessions, of all loops of the process: they would overwrite each other's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_pool: weakref.WeakKeyDictionary[ConnectionPool, Counter[tuple[str, str, str]]] = (
            weakref.WeakKeyDictionary()
        )
        self._gauge: Levels | None = None

    def report(self, pool: ConnectionPool, actor_id: str) -> None:
        with self._lock:
            if self._gauge is None:
                tag_keys = (*caller_tags("", "", ""), "state")
                self._gauge = Levels(
                    "serve_grpc_sessions", "Sessions with replicas, by state.", tag_keys
                )
            self._of_pool[pool] = pool.states()
            counted: Counter[tuple[str, ...]] = Counter()
            for other, states in self._of_pool.items():
                if other.is_alive:
                    for (application, deployment, state), number in states.items():
                        counted[deployment, application, actor_id, state] += number
            self._gauge.tell(counted)


_sessions = _Sessions()
_reporters: weakref.WeakKeyDictionary[ConnectionPool, Reporter] = weakref.WeakKeyDictionary()
_reporters_lock = threading.Lock()


def reporter_of(pool: ConnectionPool, actor_id: str) -> Reporter:
    """The reporter of a pool's loop; on that loop."""
    with _reporters_lock:
        reporter = _reporters.get(pool)
        if reporter is None:
            # A reporter knows its pool, so the table alone would keep both for ever.
            for dead in [other for other in _reporters if not other.is_alive]:
                del _reporters[dead]
            reporter = _reporters[pool] = Reporter(pool, actor_id)
        return reporter
