"""The calls of one router that Serve's own router places; what such a call is lives in fallback.py.

On the router's loop. Serve's router waits for a replica for ever, even when Serve is gone, so it is
known here which calls are under way.
"""

from __future__ import annotations

from serve_grpc.caller import outcomes
from serve_grpc.caller.call import Call
from serve_grpc.caller.fallback import NativeCall
from serve_grpc.errors import ServeGrpcError
from serve_grpc.routing.retry import RetryBudget

__all__ = ["NativeCalls"]


class NativeCalls:
    """Those that are under way.

    Args:
        budget: Of repeated calls.
    """

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._open: set[Call] = set()

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<NativeCalls {len(self)} under way>"

    def start(self, call: Call, *, is_fallback: bool) -> None:
        """Leave a call to Serve's own router.

        Args:
            call: One that was made when this was to be expected.
            is_fallback: Whether Serve's own transport carries it, too.
        """
        if call.native is None:
            # It was on its way when the deployment was replaced by one without an endpoint.
            outcomes.fail(call, ServeGrpcError("the deployment no longer has an endpoint"))
            return
        if is_fallback:
            call.ended = None  # Serve alone counts it
        self._open.add(call)
        call.place = NativeCall(call, self._budget, on_end=self._open.discard)

    def fail_all(self, reason: str) -> None:
        """End them with an error. Which of them have begun only Serve's router knows."""
        for call in tuple(self._open):
            call.place.cancel()
            outcomes.fail(call, ServeGrpcError(reason, may_have_executed=True))
