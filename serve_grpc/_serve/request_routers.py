"""Requests that Serve's own router assigns to a replica, and our sessions carry.

Serve's router asks its view of a replica to send a request. Where the replica has an endpoint of
ours, that view gets a sender of ours beside Serve's two. So a deployment's own request router,
`choose_replica`, `dispatch` and `broadcast` work as Serve runs them; only the hop to the replica is
another one. Requests of Serve's own handles keep Serve's transport: ours are marked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ray.serve._private.common import ReplicaQueueLengthInfo, RequestMetadata
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.request_router.replica_wrapper import ReplicaWrapper, gRPCReplicaWrapper

from serve_grpc._serve.tracing import context_of_metadata
from serve_grpc.errors import ObjectRefNotSupportedError
from serve_grpc.protocol.caller import Envelope, RequestFields

__all__ = [
    "AssignedCall",
    "AssignedRequest",
    "Send",
    "assigned_behind",
    "carry_requests",
    "mark",
    "replica_behind",
]

_FIELDS = tuple(field.name for field in dataclasses.fields(RequestMetadata))


@dataclass
class _MarkedMetadata(RequestMetadata):
    """Serve's metadata of a request that was made on a handle of ours."""

    deadline_s: float | None = None
    is_idempotent: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A replica without an endpoint gets it over Serve's transport, as what Serve knows.
        plain = {name: getattr(self, name) for name in _FIELDS}
        return functools.partial(RequestMetadata, **plain), ()


def mark(metadata: Any, *, deadline_s: float | None, is_idempotent: bool) -> Any:
    """Serve's metadata as that of a request which our sessions may carry.

    Args:
        metadata: Of a request by value.
        deadline_s: On `time.monotonic`, None for none.
        is_idempotent: Whether the request may run twice.
    """
    known = {name: getattr(metadata, name) for name in _FIELDS}
    return _MarkedMetadata(**known, deadline_s=deadline_s, is_idempotent=is_idempotent)


@dataclass(frozen=True)
class AssignedRequest:
    """A request, and the replica that Serve's router chose for it.

    Attributes:
        replica_id: Unique id.
        fields: What the request says; without payload.
        may_be_refused: Whether the replica turns it away when it is full; else it waits there.
        deadline_s, is_idempotent: As given to `mark`.
        internal_request_id: Of the request that makes this one, or a fresh one.
    """

    replica_id: str
    fields: RequestFields
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    may_be_refused: bool
    deadline_s: float | None
    is_idempotent: bool
    internal_request_id: str


class AssignedCall(Protocol):
    """What became of it. `call`: the call of ours; `request_id`: Serve's."""

    call: Any
    request_id: str

    async def admission(self) -> tuple[bool, int]:
        """Whether the replica took it, and how many requests ran there."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it with the error of the call, or None, on the transport's loop."""

    def cancel(self) -> None:
        """Give the call up; its replica is told to stop the code."""

    def grant(self, items: int, bytes_: int) -> None:
        """Let a stream go on whose items are taken from `call` as they came."""

    def value(self, timeout_s: float | None) -> Any:
        """Wait for the result in this thread."""

    async def value_async(self) -> Any:
        """Wait for the result on this loop."""

    def next_item(self) -> Any:
        """Wait for the next item in this thread."""

    async def next_item_async(self) -> Any:
        """Wait for the next item."""


Send = Callable[[AssignedRequest], AssignedCall]


def carry_requests(request_router: Any, send: Send, has_endpoint: Callable[[Any], bool]) -> None:
    """Let marked requests that `request_router` assigns go through `send`.

    Args:
        request_router: Serve's, of one deployment.
        send: Called on the router's loop.
        has_endpoint: Whether a `RunningReplicaInfo` names an endpoint of ours.
    """
    # `RequestRouter` makes one wrapper (`RunningReplica`) for each replica, by this function, and
    # the wrapper makes its sender for calls by value when it first needs one
    # (`_grpc_replica_wrapper` in `request_router/replica_wrapper.py`): ours is there before.
    create = request_router._create_replica_wrapper_func

    def equip(replica: Any) -> Any:
        if has_endpoint(replica._replica_info):
            replica._grpc_replica_wrapper = _Sender(replica, send)
        return replica

    request_router._create_replica_wrapper_func = lambda info: equip(create(info))
    # Those it has by now: a router that is made takes the known replicas at once.
    for replica in request_router.curr_replicas.values():
        equip(replica)


async def assigned_behind(response: Any) -> AssignedCall | None:
    """What carries the call of a response of Serve's, once a replica has it; None if not ours."""
    result = await response._fetch_future_result_async()
    return result.call if isinstance(result, _Result) else None


def replica_behind(response: Any) -> str | None:
    """The replica that has the call of a response of Serve's; None if no session of ours does."""
    future = response._replica_result_future
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    result = future.result()
    replica_id: str | None = result.call.call.replica_id if isinstance(result, _Result) else None
    return replica_id


class _Sender(ReplicaWrapper):
    """Serve's by-value sender for one replica: marked requests over our session."""

    def __init__(self, replica: Any, send: Send) -> None:
        self._replica = replica
        self._send = send
        self._serve_sender: Any = None

    def send_request_java(self, pr: Any) -> ReplicaResult:
        raise RuntimeError("a Java replica has no endpoint of serve_grpc")

    def send_request_python(self, pr: Any, *, with_rejection: bool) -> ReplicaResult:
        # Requests that nobody marked come from handles of Serve's own: they travel as ever.
        metadata = pr.metadata
        if not isinstance(metadata, _MarkedMetadata):
            if self._serve_sender is None:  # not earlier: the stub opens a channel
                self._serve_sender = gRPCReplicaWrapper(self._replica.stub, self._replica.actor_id)
            return self._serve_sender.send_request_python(pr, with_rejection=with_rejection)
        assigned = AssignedRequest(
            replica_id=self._replica.replica_id.unique_id,
            fields=_fields_of(metadata, self._replica.replica_id.deployment_id.name),
            args=tuple(pr.args),
            kwargs=pr.kwargs,
            may_be_refused=with_rejection,
            deadline_s=metadata.deadline_s,
            is_idempotent=metadata.is_idempotent,
            internal_request_id=metadata.internal_request_id,
        )
        return _Result(self._send(assigned))


def _fields_of(metadata: Any, deployment_name: str) -> RequestFields:
    envelope = Envelope(
        method=metadata.call_method,
        request_serializer=metadata.request_serialization,
        response_serializer=metadata.response_serialization,
        stream=metadata.is_streaming,
        route=metadata.route,
        app_name=metadata.app_name,
    )
    return RequestFields(
        envelope,
        b"",
        metadata.request_id,
        multiplexed_model_id=metadata.multiplexed_model_id,
        session_id=metadata.session_id,
        client=metadata._client,
        reserved_slot=metadata._reserved_slot_token or "",
        context=context_of_metadata(metadata, f"{deployment_name}.{metadata.call_method}"),
    )


class _Result(ReplicaResult):
    """A call of ours, as Serve's router and responses look at one."""

    def __init__(self, call: AssignedCall) -> None:
        self.call = call

    async def get_rejection_response(self) -> ReplicaQueueLengthInfo:
        # Serve's router waits for this before it counts the request as assigned; a refusal makes it
        # choose again.
        is_accepted, ongoing = await self.call.admission()
        return ReplicaQueueLengthInfo(accepted=is_accepted, num_ongoing_requests=ongoing)

    def get(self, timeout_s: float | None) -> Any:
        return self.call.value(timeout_s)

    async def get_async(self) -> Any:
        return await self.call.value_async()

    def __next__(self) -> Any:
        return self.call.next_item()

    async def __anext__(self) -> Any:
        return await self.call.next_item_async()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.call.add_done_callback(callback)

    def cancel(self) -> None:
        self.call.cancel()

    def to_object_ref(self) -> Any:
        raise ObjectRefNotSupportedError("_to_object_ref_sync", request_id=self.call.request_id)

    async def to_object_ref_async(self) -> Any:
        raise ObjectRefNotSupportedError("_to_object_ref", request_id=self.call.request_id)

    def to_object_ref_gen(self) -> Any:
        raise ObjectRefNotSupportedError("_to_object_ref_gen", request_id=self.call.request_id)
