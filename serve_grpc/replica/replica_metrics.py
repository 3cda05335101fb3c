"""What a replica counts of its own, told to Ray's metrics once a second on its main loop.

Requests, latencies and errors are in Serve's own metrics (`ReplicaAdapter.record`); these are
of the data plane: what came over it, what was turned away, how full messages are.
"""

from __future__ import annotations

from serve_grpc._serve.replicas import ReplicaAdapter
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.metrics import Levels, Ticker, Totals, TrafficMetrics, replica_tags
from serve_grpc.replica.dispatcher import ReplicaDispatcher

__all__ = ["ReplicaMetrics"]


class ReplicaMetrics:
    """Reports from `start` to `stop`. Lives on the main loop."""

    def __init__(
        self, replica: ReplicaAdapter, dispatcher: ReplicaDispatcher, server: ReplicaServer
    ) -> None:
        tags = replica_tags(replica.deployment_name, replica.app_name, replica.replica_id)
        self._dispatcher = dispatcher
        self._server = server
        self._key = tuple(tags.values())
        self._requests = Totals(
            "serve_grpc_replica_requests", "Requests that ended.", tags, key="outcome"
        )
        self._rejections = Totals(
            "serve_grpc_replica_rejections", "Requests turned away by a full replica.", tags
        )
        self._counters = TrafficMetrics("serve_grpc_replica", tags)
        text = "Open sessions, by what carries them."
        self._sessions = Levels("serve_grpc_replica_sessions", text, (*tags, "carrier"))
        self._ticker = Ticker("replica", replica.actor_id, self._report)
        self.start, self.stop = self._ticker.start, self._ticker.stop

    def _report(self) -> None:
        for status, total in self._dispatcher.outcomes.items():
            self._requests.tell(total, status.lower())
        self._rejections.tell(self._dispatcher.rejections)
        self._counters.tell(self._server.counters)
        carriers = self._server.host.carriers()
        self._sessions.tell({(*self._key, carrier): n for carrier, n in carriers.items()})
