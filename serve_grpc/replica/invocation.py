"""One request on its way through a replica."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import Protocol

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.tracing import Scope
from serve_grpc.payload import Payload
from serve_grpc.replica.gates import LoopGate, ThreadGate
from serve_grpc.replica.thread_call import ThreadCall

__all__ = ["CancelReason", "Invocation", "Outcome", "ReplySink"]


class CancelReason(enum.Enum):
    """Why the user's code was told to stop."""

    CALLER = "caller"
    """The caller cancelled or went away; nobody waits for an answer."""
    DEADLINE = "deadline"


class ReplySink(Protocol):
    """Where the outputs of an invocation go. Called on the replica's main loop."""

    def item(self, invocation: Invocation, payload: Payload) -> None:
        """One item of a stream."""

    def finish(self, invocation: Invocation, payload: Payload, error: Error | None) -> None:
        """The result, the end of a stream, or the error."""


@dataclass(slots=True, eq=False)
class Invocation:
    """A request that was admitted, or stands by for a slot.

    From `gate` on the fields belong to the user's loop; the rest is not changed once set.

    Attributes:
        scope: Trace and other context that it carried; None without, where nothing is traced.
        is_held: Whether its stream waits until the caller has read more of its replies.
        has_started: Whether the user's code was called.
        is_running: Whether the task has begun, so that cancelling it reaches its code.
        is_over: Whether its outcome was given.
        thread_call: Its code, if that runs in a thread.
        started_s: When it began, by `time.perf_counter`.
    """

    sink: ReplySink
    call_id: int
    method: str
    request_serializer: str
    response_serializer: str
    is_stream: bool
    payload: Payload
    request_id: str
    internal_request_id: str
    route: str = ""
    multiplexed_model_id: str = ""
    session_id: str = ""
    client: str = ""
    deadline_s: float | None = None
    credit: tuple[int, int] = (0, 0)
    scope: Scope | None = None
    gate: LoopGate | ThreadGate | None = None
    task: asyncio.Task[None] | None = None
    is_held: bool = False
    has_started: bool = False
    is_running: bool = False
    is_over: bool = False
    cancel_reason: CancelReason | None = None
    thread_call: ThreadCall | None = None
    started_s: float = 0.0


@dataclass(slots=True)
class Outcome:
    """How an invocation ended.

    Attributes:
        payload: The serialized result of a unary call; of an error, no bytes, but the refs that
            its exception names.
        error: What the caller is told, None for success.
        exception_type: Name for Serve's error metric, None for success.
        status: For the access log: "OK", "ERROR" or "CANCELLED".
        latency_ms: From the start of the request to its outcome.
        passes_slot_on: Whether its slot goes to another request, and is not to be released.
        holds_slot: Whether its code still runs, in a thread, and its slot is not free yet.
    """

    payload: Payload = b""
    error: Error | None = None
    exception_type: str | None = None
    status: str = "OK"
    latency_ms: float = 0.0
    passes_slot_on: bool = False
    holds_slot: bool = False
