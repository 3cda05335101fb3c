"""The calls of one router that wait for a replica, counted while they do.

Serve's autoscaler and the metrics see how many wait; a call counts from `enter` until it leaves,
or is given up.
"""

from __future__ import annotations

from serve_grpc.caller.call import Call
from serve_grpc.caller.tally import Tally
from serve_grpc.routing.row import Row

__all__ = ["WaitingCalls"]


class WaitingCalls(Row[Call]):
    """A row that keeps the books.

    Args:
        tally: Where it is counted who waits.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def enter(self, call: Call) -> None:
        """Let a call wait, where it stood before if it comes back."""
        call.is_queued = True
        self._tally.on_queued(call)
        self.add(call)

    def leave(self) -> Call | None:
        """Take the first call that still waits."""
        call = self.pop()
        if call is not None:
            self.give_up(call)
        return call

    def give_up(self, call: Call) -> None:
        """The call waits no longer; nothing happens for one that does not."""
        if call.is_queued:
            call.is_queued = False
            self._tally.on_unqueued()
