"""What a handle knows of its calls and its replicas, as one value for people who debug.

Read from whatever thread asks, without a lock and without the loop that carries the calls, so it
answers while that loop is blocked, too. The numbers may be of slightly different moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.serve import handle as serve_handle

from serve_grpc._serve.requests import inside_ray_client_context
from serve_grpc._serve.routers import has_replicas
from serve_grpc.caller.registry import UNREACHABLE, transport_of
from serve_grpc.carriers.counters import Counters
from serve_grpc.handle import DeploymentHandle
from serve_grpc.routing.peer import Peer

__all__ = ["HandleStatistics", "ReplicaStatistics", "handle_statistics"]


@dataclass(frozen=True)
class ReplicaStatistics:
    """One replica, as this process sees it.

    Attributes:
        replica_id: Ray Serve's unique id.
        address: "host:port" of its endpoint.
        state: Of the session: "idle" (none was needed yet), "connecting", "ready", "suspect" (it
            does not answer heartbeats), "lost" (to be opened again) or "gone" (it drains).
        carrier: What carries the open session: "grpc", or "local" for the local lane; "" while no
            session is open.
        in_flight: Calls of this process that it has not answered.
        reported_load: Requests of all callers that ran there when it last said so, and those sent
            since.
        max_ongoing_requests: How many it runs at once.
        is_blocked: Whether it turned a call away and has not told of a free slot since.
        is_penalised: Whether it gets hardly any calls because most fail there, but not elsewhere.
    """

    replica_id: str
    address: str
    state: str
    carrier: str
    in_flight: int
    reported_load: int
    max_ongoing_requests: int
    is_blocked: bool
    is_penalised: bool


@dataclass(frozen=True)
class HandleStatistics:
    """The calls by value of a handle and its copies, since the first of them.

    Attributes:
        deployment_name, app_name: What is called.
        transport: What these calls travel over: "serve_grpc", "Serve's gRPC" (see
            `fallback_reason`), or "undecided" while the deployment's replicas are not known.
            While there was no call by value: what the handle's own will; also "by reference".
        fallback_reason: Why calls by value go over Serve's own transport; None if they do not.
        calls: How many calls ended, by outcome: `serve_grpc_calls` in docs/metrics.md. Those that
            Serve's transport carried are not among them.
        in_flight: Calls on replicas, of all handles to the deployment on the same event loop.
        waiting: Calls that wait for a replica.
        rejections: How often a full or draining replica turned a call away.
        retries: How often a call was repeated after its session was lost.
        messages_sent, requests_sent, bytes_sent, messages_received, replies_received,
            bytes_received: What went over the sessions, of all handles to the deployment on the
            same event loop. Requests divided by messages is the mean size of a batch.
        local_fallbacks: How often one of these sessions took gRPC because the local lane could not
            be had.
        replicas: Those with an endpoint, by id.
    """

    deployment_name: str
    app_name: str
    transport: str
    fallback_reason: str | None
    calls: dict[str, int]
    in_flight: int
    waiting: int
    rejections: int
    retries: int
    messages_sent: int
    requests_sent: int
    bytes_sent: int
    messages_received: int
    replies_received: int
    bytes_received: int
    local_fallbacks: int
    replicas: tuple[ReplicaStatistics, ...]


def handle_statistics(handle: DeploymentHandle[Any]) -> HandleStatistics:
    """What is known of a handle's calls by value and of the replicas; never waits.

    Args:
        handle: One of ours; its copies share the numbers.

    Raises:
        TypeError: It is none of ours.
    """
    if not isinstance(handle, DeploymentHandle):
        hint = " (see serve_grpc.wrap)" if isinstance(handle, serve_handle.DeploymentHandle) else ""
        kind = f"{type(handle).__module__}.{type(handle).__name__}"
        raise TypeError(f"expected a serve_grpc.DeploymentHandle, got {kind}{hint}")
    # Not a method: a deployment may have one of that name, and `handle.name` is the deployment's.
    serves, router = handle._router, handle._known_router()
    is_reachable = not inside_ray_client_context() and (serves is None or has_replicas(serves))
    fallback_reason = None if is_reachable else UNREACHABLE
    tally = router.tally if router is not None else None
    if router is not None and router.feed.fallback_reason is not None:
        fallback_reason = router.feed.fallback_reason
    counters = tally.counters if tally is not None else Counters()
    peers = tally.replicas.peers if tally is not None and tally.replicas is not None else ()
    return HandleStatistics(
        deployment_name=handle.deployment_name,
        app_name=handle.app_name,
        transport=transport_of(router, handle.handle_options._by_reference, fallback_reason),
        fallback_reason=fallback_reason,
        calls=tally.outcomes() if tally is not None else {},
        in_flight=sum(peer.in_flight for peer in peers),
        waiting=tally.waiting if tally is not None else 0,
        rejections=tally.rejections if tally is not None else 0,
        retries=tally.retries if tally is not None else 0,
        messages_sent=counters.messages_sent,
        requests_sent=counters.frames_sent,
        bytes_sent=counters.bytes_sent,
        messages_received=counters.messages_received,
        replies_received=counters.frames_received,
        bytes_received=counters.bytes_received,
        local_fallbacks=counters.local_fallbacks,
        replicas=tuple(_of_replica(peer) for peer in peers),
    )


def _of_replica(peer: Peer) -> ReplicaStatistics:
    facts = peer.facts
    return ReplicaStatistics(
        replica_id=facts.replica_id,
        address=facts.address,
        state=peer.state.value,
        carrier=peer.carrier,
        in_flight=peer.in_flight,
        reported_load=peer.reported,
        max_ongoing_requests=facts.max_ongoing_requests,
        is_blocked=peer.blocked,
        is_penalised=peer.penalised,
    )
