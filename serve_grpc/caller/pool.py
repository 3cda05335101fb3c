"""The connections of one event loop: one per replica, shared by all handles that use the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import Counter, defaultdict

from serve_grpc._serve.cluster import cluster_secrets
from serve_grpc.caller.connection import Connection, ConnectionUser
from serve_grpc.caller.heartbeats import Heartbeats
from serve_grpc.caller.reconnects import Reconnects
from serve_grpc.carriers.counters import Counters
from serve_grpc.config import LOGGER_NAME, Settings, settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.mailbox import mailbox_of
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts

__all__ = ["ConnectionPool", "pool_of"]

logger = logging.getLogger(LOGGER_NAME)


class ConnectionPool:
    """Connections by replica id. Lives on the loop it is made on.

    Args:
        settings: Limits, heartbeat, TLS.

    Attributes:
        counters: What went over the connections of each deployment, by its application and name.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._connections: dict[str, Connection] = {}
        self._retired: set[Connection] = set()
        self.counters: defaultdict[tuple[str, str], Counters] = defaultdict(Counters)
        self._reconnects = Reconnects()
        self._heartbeats = Heartbeats(settings.heartbeat_interval_s)
        self._ticker: asyncio.TimerHandle | None = None
        self._secrets = ClusterSecrets(cluster_secrets)
        self._secrets.refresh()  # so that the first session need not wait for it

    def __repr__(self) -> str:
        return f"<ConnectionPool of {len(self._connections)} replicas>"

    @property
    def is_alive(self) -> bool:
        """Whether its loop still exists."""
        return not self._loop.is_closed()

    def states(self) -> Counter[tuple[str, str, str, str]]:
        """How many sessions there are by application, deployment, state and carrier.

        The carrier is "" where no session is open.
        """
        peers = (connection.peer for connection in self._connections.values())
        return Counter(
            (peer.facts.application, peer.facts.deployment, peer.state.value, peer.carrier)
            for peer in peers
            if peer.state is not PeerState.IDLE
        )

    def acquire(self, facts: ReplicaFacts, user: ConnectionUser) -> Connection:
        """The connection to a replica, noting that `user` uses it."""
        connection = self._connections.get(facts.replica_id)
        if connection is None:
            counters = self.counters[facts.application, facts.deployment]
            connection = Connection(
                Peer(facts), self._settings, self._secrets, counters, self._reconnects
            )
            self._connections[facts.replica_id] = connection
        # Its models change while it lives; the peer is shared, so every handle sees the newest.
        connection.peer.facts = facts
        connection.users.add(user)
        if self._ticker is None:
            self._tick()
        return connection

    def release(self, connection: Connection, user: ConnectionUser) -> None:
        """`user` no longer sends calls to this replica; those on their way go on."""
        connection.users.discard(user)
        if not connection.users:
            # Out of the table: if the replica is listed again it needs another peer, GONE is final.
            self._connections.pop(connection.peer.facts.replica_id, None)
            self._retired.add(connection)  # its replica hears from us until its calls are over
            connection.retire()

    async def aclose(self) -> None:
        """Close every connection."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        connections = [*self._connections.values(), *self._retired]
        self._connections.clear()
        self._retired.clear()
        for connection in connections:
            await connection.aclose()

    def _tick(self) -> None:
        # Before the ticker is set again: it ends with the last of them.
        self._retired = {connection for connection in self._retired if not connection.is_down}
        self._ticker = (
            mailbox_of(self._loop).call_later(self._heartbeats.beat_s, self._tick)
            if self._connections or self._retired
            else None
        )
        now_s = time.monotonic()
        everyone = (*self._connections.values(), *self._retired)
        for connection in self._heartbeats.due(everyone, now_s):
            try:
                connection.beat(now_s)
            except Exception:  # the others still get theirs, and the next tick comes
                logger.exception("no heartbeat for %r", connection)


_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ConnectionPool] = (
    weakref.WeakKeyDictionary()
)
_pools_lock = threading.Lock()


def pool_of() -> ConnectionPool:
    """The pool of the running loop."""
    loop = asyncio.get_running_loop()
    # Loops of several threads share this table.
    with _pools_lock:
        pool = _pools.get(loop)
        if pool is None:
            # A pool knows its loop, so the table alone would keep both for ever.
            for closed in [other for other in _pools if other.is_closed()]:
                del _pools[closed]
            pool = _pools[loop] = ConnectionPool(settings)
        return pool
