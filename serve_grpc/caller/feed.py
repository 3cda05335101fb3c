"""What the control plane has told of a deployment so far, as one value that its router replaces.

Read in any thread for each call, so everything in it belongs to one moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from serve_grpc.allow_list import AllowList
from serve_grpc.caller.replica_set import ReplicaSet

__all__ = ["Feed"]


@dataclass(frozen=True, slots=True)
class Feed:
    """News of one deployment.

    Attributes:
        is_ready: Whether its replicas and its configuration are known.
        fallback_reason: Why calls go over Serve's own transport; None if they do not.
        is_serve_routed: Whether Serve's own router picks the replicas: always where calls go over
            its own transport, and where the deployment has a request router of its own.
        serializers: The only ones that all replicas take, as far as is known; None for all.
        takes_inputs: Whether all replicas take streams as arguments, as far as is known.
    """

    is_ready: bool = False
    fallback_reason: str | None = None
    is_serve_routed: bool = False
    serializers: AllowList = None
    takes_inputs: bool = True

    def for_bound_calls(self) -> Feed:
        """The same, for calls whose replica is given: no request router has a say in them."""
        return replace(self, is_serve_routed=self.fallback_reason is not None)

    def after(
        self, replica_set: ReplicaSet, *, is_configured: bool, has_custom_router: bool
    ) -> Feed:
        """What is known after news of the replicas, or of the configuration.

        Args:
            replica_set: The replicas of now.
            is_configured: Whether the configuration has arrived.
            has_custom_router: Whether it names a request router other than Serve's default.
        """
        is_ready, reason, is_routed = self.is_ready, self.fallback_reason, self.is_serve_routed
        # Not with an empty set, as of a deployment scaled to zero: what was known of it holds.
        if len(replica_set) and is_configured:
            is_ready = True
            reason = None if replica_set.has_reachable else "has no serve_grpc endpoint"
        if is_configured:
            is_routed = has_custom_router or bool(reason)
        takes_inputs = replica_set.takes_inputs
        return Feed(is_ready, reason, is_routed, replica_set.serializers, takes_inputs)
