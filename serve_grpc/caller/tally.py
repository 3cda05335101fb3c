"""What one router counts, and how it reaches Ray's metrics.

A call costs an append here; everything else is done once a second, in `report`. Calls end in any
thread, so their outcomes are folded under a lock; the rest belongs to the router's loop, and may be
read from anywhere.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from ray.exceptions import RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)

from serve_grpc._serve.exceptions import RemoteException
from serve_grpc._serve.routers import RouterAccess
from serve_grpc.caller.call import Call
from serve_grpc.caller.replicas import Replicas
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaDiedError,
    SerializationError,
)
from serve_grpc.metrics import Totals, caller_tags
from serve_grpc.transport.traffic import Traffic

__all__ = ["OUTCOMES", "Tally"]

# In this order: a user's exception is a RayTaskError and may be of any other type beside that.
_OUTCOME_OF: dict[type, str] = {
    type(None): "ok",
    RemoteException: "user_exception",
    RayTaskError: "user_exception",  # over Serve's own transport
    RequestCancelledError: "cancelled",
    DeadlineExceededError: "deadline_exceeded",
    BackPressureError: "back_pressure",
    DeploymentUnavailableError: "deployment_unavailable",
    ReplicaDiedError: "replica_died",
    MessageTooLargeError: "message_too_large",
    SerializationError: "serialization",
}
OUTCOMES = (*dict.fromkeys(_OUTCOME_OF.values()), "error")


class Tally:
    """Numbers of one router. Everything but `outcomes` is called on its loop.

    Attributes:
        deployment: Application and name.
        replicas: The deployment's; None until the router has begun.
        ended: For each call that ended, the type of its error; appended to from any thread.
        resolutions_ms: For each call with responses among its arguments, how long they took.
        traffic: Of the deployment's connections on this loop, once there is a reporter.
        waiting: Calls in the router's row.
        rejections: How often a full or draining replica turned a call away.
        retries: How often a call was repeated after its session was lost.
    """

    def __init__(self, access: RouterAccess) -> None:
        self._access = access
        self.replicas: Replicas | None = None
        self._folding = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._waits_ms: list[float] = []
        self._waited = self._told_at_once = 0
        self._resolved = self._told_without = 0
        self.deployment = access.app_name, access.deployment_name
        self.ended: list[type] = []
        self.resolutions_ms: list[float] = []
        self.traffic = Traffic()
        self.waiting = 0
        self.rejections = 0
        self.retries = 0
        tags = caller_tags(access.deployment_name, access.app_name, access.actor_id)
        self._calls = Totals("serve_grpc_calls", "Calls that ended.", tags, key="outcome")
        self._rejections = Totals(
            "serve_grpc_rejections", "Calls that a full replica turned away; they wait.", tags
        )
        self._retries = Totals(
            "serve_grpc_retries", "Calls repeated after a session was lost.", tags
        )

    # ------------------------------------------------------------ notes

    def on_queued(self, call: Call) -> None:
        """A call waits, perhaps again; its wait began with the first time."""
        self.waiting += 1
        call.queued_s = call.queued_s or time.monotonic()
        self._access.on_queued()

    def on_unqueued(self) -> None:
        """It no longer does."""
        self.waiting -= 1
        self._access.on_unqueued()

    def on_waited(self, call: Call) -> None:
        """A call that had to wait was sent."""
        self._waits_ms.append((time.monotonic() - call.queued_s) * 1000)

    # ------------------------------------------------------------ what came of it

    def outcomes(self) -> dict[str, int]:
        """How many calls ended in which way; from any thread."""
        with self._folding:
            # Appended to meanwhile, at the end; each of these steps is one for the interpreter.
            ended = self.ended[:]
            del self.ended[: len(ended)]
            for kind, number in Counter(ended).items():
                self._outcomes[_outcome_of(kind)] += number
            return dict(self._outcomes)

    def report(self) -> None:
        """Tell Ray's and Serve's metrics what was added since the last time."""
        for outcome, total in self.outcomes().items():
            self._calls.tell(total, outcome)
        self._rejections.tell(self.rejections)
        self._retries.tell(self.retries)
        self._report_as_serve_does()

    def _report_as_serve_does(self) -> None:
        access, metrics = self._access, self._access.request_router_metrics
        waits_ms, self._waits_ms = self._waits_ms, []
        resolutions_ms, self.resolutions_ms = self.resolutions_ms, []
        self._waited += len(waits_ms)
        self._resolved += len(resolutions_ms)
        # All the others; the access tells its totals a moment later than the notes are taken.
        at_once = max(0, access.sent - self._waited - self._told_at_once)
        without = max(0, access.calls - self._resolved - self._told_without)
        self._told_at_once += at_once
        self._told_without += without
        metrics.on_waits(waits_ms, at_once)
        metrics.on_resolved(resolutions_ms, without)
        if self.replicas is not None:
            is_full = self.waiting > 0 and len(self.replicas) > 0
            metrics.set_tasks(routing=int(self.waiting > 0), in_backoff=int(is_full))
            metrics.set_loads({p.facts.replica_id: p.load for p in self.replicas.peers})


def _outcome_of(error_type: type) -> str:
    for known, outcome in _OUTCOME_OF.items():
        if issubclass(error_type, known):
            return outcome
    return "error"
