"""In the place of a replica's dispatcher: an echo, for servers that run without Serve."""

from __future__ import annotations

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.payload import joined
from serve_grpc.protocol.replica import Arrival

__all__ = ["HOST", "SECRET", "Echo"]

HOST = "127.0.0.1"
SECRET = b"s" * 32
"""Of the cluster that such servers and their callers belong to."""


class Echo:
    """A `Dispatcher` that answers each request, and each plain call, with its payload, at once.

    Args:
        max_ongoing_requests: What it tells callers; it counts nothing.
    """

    def __init__(self, max_ongoing_requests: int) -> None:
        self._max_ongoing_requests = max_ongoing_requests

    def on_arrival(self, stream: ReplicaPump, arrival: Arrival) -> None:
        for request in arrival.requests:
            stream.session.reply(request.id, Reply.RESULT, joined(request.payload))
        stream.kick()

    def on_session_closed(self, stream: ReplicaPump, call_ids: list[int]) -> None:
        """Nothing is kept of a session."""

    def on_plain_call(self, call: PlainCall) -> None:
        call.put(call.request.payload)

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """Nothing is kept of plain calls."""

    def ongoing(self) -> int:
        return 0

    def max_ongoing_requests(self) -> int:
        return self._max_ongoing_requests

    def standby(self) -> int:
        return 0
