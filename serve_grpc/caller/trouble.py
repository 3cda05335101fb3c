"""Why one replica has no session, and what the log is told of it.

Calls that wait for a replica and give up name what is kept here. On the loop of the connection.
"""

from __future__ import annotations

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc.caller.complaints import Complaints
from serve_grpc.protocol.caller import HandshakeRefused
from serve_grpc.routing.peer import Peer

__all__ = ["Trouble"]

FEW_FAILURES = 3
"""Not worth a warning: a replica that starts or ends."""


class Trouble:
    """With the session to one replica.

    Args:
        peer: Whose.

    Attributes:
        times: How often in a row the session could not be opened, or was lost.
        reason: Of the last time; "" while there is none.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._unreachable, self._failed = Complaints(), Complaints()
        self.times = 0
        self.reason = ""

    def __repr__(self) -> str:
        return f"<Trouble {self.times} times: {self.reason}>"

    def __str__(self) -> str:
        return f"{self._peer.facts.replica_id} at {self._peer.facts.address}: {self.reason}"

    def on_slow(self, waited_s: float) -> None:
        """The session takes long to open."""
        self.reason = self.reason or f"no answer within {waited_s:g} s"

    def on_lost(self, reason: BaseException | str) -> bool:
        """There is no session; returns whether the cluster's secret may be another one by now."""
        self.times += 1
        is_refused = isinstance(reason, HandshakeRefused)
        self.reason = str(reason) if is_refused or isinstance(reason, str) else repr(reason)
        if is_refused:
            self._failed.warn(
                "%s refused the session: %s", self._peer.facts.replica_id, self.reason
            )
        elif not isinstance(reason, str):  # a bug, here or there
            self._failed.warn("the session failed with replica %s", self)
        elif self.times > FEW_FAILURES:
            self._unreachable.warn(
                "cannot reach replica %s; calls to it wait or go elsewhere", self
            )
        return isinstance(reason, HandshakeRefused) and reason.reason == Refusal.UNAUTHENTICATED

    def on_opened(self) -> None:
        """There is a session."""
        self.times = 0
        self.reason = ""
