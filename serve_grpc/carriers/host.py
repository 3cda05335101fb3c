"""The sessions of one replica, over whatever carriers its callers come.

A carrier hands each link over (`serve`); the rest is the same for all: how many sessions there may
be, the secrets, the numbers of sessions, draining. Lives on the replica's loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.link import Cause, Link
from serve_grpc.carriers.replica_pump import MAX_SILENCE_S, ReplicaPump, SessionDispatcher
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.entrance.unproven import UnprovenPeers
from serve_grpc.protocol.handshake import NONCE_BYTES
from serve_grpc.protocol.replica import ReplicaSession

__all__ = ["SessionHost"]

logger = logging.getLogger(LOGGER_NAME)

SILENT_HEARTBEATS = 60
"""A session whose caller misses so many of its heartbeats is ended, if that is later than
`MAX_SILENCE_S`."""


class SessionHost:
    """Serves the links that carriers accept.

    Args:
        replica_id: Unique id of the replica.
        secrets: Of the cluster.
        settings: Limits and the heartbeat.
        dispatcher: Who handles requests.
        largest_message: Bytes of the largest message that a peer may send before it has proved
            itself, over any carrier.

    Attributes:
        counters: What went over the sessions until now.
        unproven: Peers that have not proved themselves; those of other doors, too.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        secrets: ClusterSecrets,
        settings: Settings,
        dispatcher: SessionDispatcher,
        largest_message: int,
    ) -> None:
        self.counters = Counters()
        self.unproven = UnprovenPeers(largest_message, settings.max_connections)
        self._replica_id = replica_id
        self._secrets = secrets
        self._settings = settings
        self._dispatcher = dispatcher
        self._max_silence_s = max(MAX_SILENCE_S, SILENT_HEARTBEATS * settings.heartbeat_interval_s)
        self._streams: set[ReplicaPump] = set()
        self._epochs = 0
        self._is_draining = False

    def __repr__(self) -> str:
        return f"<SessionHost of {self._replica_id}, {len(self._streams)} sessions>"

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._streams)

    def carriers(self) -> Counter[str]:
        """How many there are over each carrier."""
        return Counter(stream.carrier for stream in self._streams)

    async def serve(self, link: Link) -> None:
        """Serve one link to its end.

        Raises:
            asyncio.CancelledError: As of `ReplicaPump.run`.
        """
        # Unproven peers do not count, or anybody who reaches the port could keep members out. Their
        # number is bounded by itself (`entrance/unproven.py`).
        if len(self._streams) - self.unproven.count >= self._settings.max_connections:
            text = f"SERVE_GRPC_MAX_CONNECTIONS={self._settings.max_connections} sessions are open"
            logger.debug("a link over %s is refused: %s", link.carrier, text)
            await link.abort(Cause.LIMIT, text)
            await link.close()
            return
        # Before the session is made: its first message is judged by what the keyring holds then.
        await self._secrets.fresh()
        stream = ReplicaPump(
            self._new_session(),
            link,
            self._dispatcher,
            self.counters,
            self.unproven,
            self._max_silence_s,
            self._secrets.reread,
        )
        # Looked at after the last await: `drain` tells those in the set, and this one is not in it.
        if self._is_draining:
            await stream.refuse(Refusal.DRAINING, "the replica is shutting down")
            return
        self._streams.add(stream)
        logger.debug("a link over %s for %r", link.carrier, stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def _new_session(self) -> ReplicaSession:
        # Never used twice: refs that a reply lent are fetched by epoch and number (decision 0016).
        self._epochs += 1
        return ReplicaSession(
            replica_id=self._replica_id,
            keyring=self._secrets.keyring,
            nonce=os.urandom(NONCE_BYTES),
            epoch=self._epochs,
            max_ongoing_requests=self._dispatcher.max_ongoing_requests(),
            max_message_bytes=self._settings.max_message_bytes,
            takes_stored=self._settings.stores_oversize,
            input_credit=(self._settings.stream_window_items, self._settings.stream_window_bytes),
        )

    def drain(self) -> None:
        """Tell every caller to go elsewhere; running requests go on."""
        self._is_draining = True
        for stream in self._streams:
            stream.session.drain()
            stream.kick()

    async def flush(self, grace_s: float) -> None:
        """Return once all that is queued is written, or after `grace_s` seconds."""
        flushes = [asyncio.ensure_future(stream.wait_flushed()) for stream in self._streams]
        if flushes:
            _, late = await asyncio.wait(flushes, timeout=grace_s)
            # They wait for callers that do not read; `asyncio.wait` leaves them running.
            for flush in late:
                flush.cancel()
