"""What a replica counts of its own, told to Ray's metrics once a second on its main loop.

Requests, latencies and errors are in Serve's own metrics (`ReplicaAccess.record`); these are of the
data plane: what came over it, what was turned away, how full messages are.
"""

from __future__ import annotations

from serve_grpc._serve.replicas import ReplicaAccess
from serve_grpc.metrics import Levels, Ticker, Totals, TrafficMetrics, replica_tags
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.transport.server import ReplicaServer

__all__ = ["ReplicaReporter"]


class ReplicaReporter:
    """Reports from `start` to `stop`. Lives on the main loop."""

    def __init__(
        self, replica: ReplicaAccess, dispatcher: ReplicaDispatcher, server: ReplicaServer
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
        self._traffic = TrafficMetrics("serve_grpc_replica", tags)
        self._sessions = Levels("serve_grpc_replica_sessions", "Open sessions.", tuple(tags))
        self._ticker = Ticker("replica", replica.actor_id, self._report)
        self.start, self.stop = self._ticker.start, self._ticker.stop

    def _report(self) -> None:
        for status, total in self._dispatcher.outcomes.items():
            self._requests.tell(total, status.lower())
        self._rejections.tell(self._dispatcher.rejections)
        self._traffic.tell(self._server.traffic)
        self._sessions.tell({self._key: self._server.sessions})
