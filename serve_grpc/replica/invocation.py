"""One request on its way through a replica: what was asked, how far it is, how it ended.

Its stage only ever goes forward, one step at a time or straight to OVER:

WAITING   admitted and not begun, or standing by for a slot
BEGUN     its task runs: a cancel of the task reaches the code in it
CALLED    the user's code was called: from here on the request may have had effects
OVER      its outcome was given; the user's code may still be in its thread

`Executor` makes these moves, and `UserCode` the one to CALLED, in one line each, on the user's
loop. They are not looked up in a table of legal moves (`states`): that is three calls for each
request, and costs more than what they guard. Two things are no stages. A request may be told to
stop (`cancel_reason`) at any stage before OVER, and its stream may be held (`is_held`) at any stage
whatever.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import Protocol

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.tracing import Scope
from serve_grpc.payload import Memory, Payload
from serve_grpc.replica.inputs import Inputs
from serve_grpc.replica.thread_call import ThreadCall
from serve_grpc.streams.credit_gates import LoopGate, ThreadGate

__all__ = ["CancelReason", "Invocation", "Outcome", "Replies", "Stage"]


class Stage(enum.Enum):
    """How far an invocation is; in words at the head of this file."""

    WAITING = "waiting"
    BEGUN = "begun"
    CALLED = "called"
    OVER = "over"


class CancelReason(enum.Enum):
    """Why the user's code was told to stop."""

    CALLER = "caller"
    """The caller cancelled or went away; nobody waits for an answer."""
    DEADLINE = "deadline"
    """The deadline that the caller gave has passed; it is told so."""


class Replies(Protocol):
    """Where the outputs of an invocation go. Called on the replica's main loop.

    Attributes:
        stores_above: Size above which its result goes by Ray's object store; None if it never does.
            Read on the user's loop.
    """

    @property
    def stores_above(self) -> int | None: ...

    def item(self, invocation: Invocation, payload: Payload) -> None:
        """Send one item of a stream."""

    def finish(self, invocation: Invocation, payload: Payload, error: Error | None) -> None:
        """Send the result, the end of a stream, or the error; nothing follows."""


# Compared by identity: two requests may say the same, and with `eq` it could not be hashed.
@dataclass(slots=True, eq=False)
class Invocation:
    """A request that was admitted, or stands by for a slot.

    From `gate` on the fields belong to the user's loop. The rest is set before it is handed over
    to that loop, which lets go of the payload and changes nothing else.

    Attributes:
        scope: Trace and other context that it carried; None without, where nothing is traced.
        is_followed: Whether debug lines tell of each step; looked up when it arrived.
        task: What runs it; None until it is started.
        inputs: Streams among its arguments; None without.
        memory: Where large outputs are written, for who receives them; None for the heap.
        is_held: Whether its stream waits until the caller has read more of its replies.
        cancel_reason: Why it was told to stop; None if it was not.
        thread_call: Its code, if that runs in a thread.
        started_s: When it began, by `time.perf_counter`.
    """

    # In the order of `making.from_session`, which fills them in by position.
    replies: Replies
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
    is_followed: bool = False
    inputs: Inputs | None = None
    memory: Memory | None = None
    gate: LoopGate | ThreadGate | None = None
    task: asyncio.Task[None] | None = None
    is_held: bool = False
    stage: Stage = Stage.WAITING
    cancel_reason: CancelReason | None = None
    thread_call: ThreadCall | None = None
    started_s: float = 0.0


@dataclass(slots=True)
class Outcome:
    """How an invocation ended, as plain values: what its caller, Serve and its slot get of it.

    Attributes:
        payload: The serialized result of a unary call; of an error, no bytes, but the refs that
            its exception names.
        error: What the caller is told, None for success.
        exception_type: Name for Serve's error metric, None for success.
        status: For the access log: "OK", "ERROR" or "CANCELLED".
        latency_ms: From the start of the request to its outcome.
        passes_slot_on: Whether its slot goes to another request, and is not to be given back.
        holds_slot: Whether its code still runs, in a thread, and its slot is not free yet.
    """

    payload: Payload = b""
    error: Error | None = None
    exception_type: str | None = None
    status: str = "OK"
    latency_ms: float = 0.0
    passes_slot_on: bool = False
    holds_slot: bool = False
