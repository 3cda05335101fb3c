"""Calls to the one replica that Serve's own router chose for them.

A deployment's own request router, `choose_replica`, `dispatch` and `broadcast` end here. A call
waits only for its own replica: for the session, and for room where it may not be turned away. On
the router's loop. Invariant: each call given to `send` ends once, and its callbacks run then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorUnavailableError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.request_routers import PlacedRequest
from serve_grpc.caller import outcomes
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.replicas import Replicas
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.errors import MessageTooLargeError, ReplicaDiedError, ServeGrpcError
from serve_grpc.payload import Payload
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.routing.peer import PeerState
from serve_grpc.serialization import get_serializer
from serve_grpc.transport.mailbox import Mailbox

__all__ = ["PlacedCalls"]

logger = logging.getLogger(LOGGER_NAME)


class _Placed:
    """One call. Also its `place`, and what Serve's router gets for it (`PlacedCall`).

    Attributes:
        call_id: Within the session, once it was sent.
        admitted: Done when the replica is known to have taken the call, or to have turned it away.
    """

    def __init__(
        self, owner: PlacedCalls, request: PlacedRequest, call: Call, connection: Connection
    ) -> None:
        self.owner = owner
        self.call = call
        self.connection = connection
        self.may_be_refused = request.may_be_refused
        self.has_slot = bool(request.fields.reserved_slot)
        self.request_id = request.fields.request_id
        self.call_id: int | None = None
        self.admitted: asyncio.Future[bool] = owner.loop.create_future()
        self.callbacks: list[Callable[[Any], None]] = []

    async def admission(self) -> tuple[bool, int]:
        """Whether the replica took it, and how many requests ran there.

        Raises:
            ActorUnavailableError: It was lost before that; another one may be asked.
        """
        return await asyncio.shield(self.admitted), self.connection.peer.load

    def is_admitted(self) -> None:
        """The replica took it."""
        if not self.admitted.done():
            self.admitted.set_result(True)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it with the call's error, or None; at once if the call has ended."""
        if self.call.done:
            callback(_as_serve_sees_it(self.call.error, self.connection))
        else:
            self.callbacks.append(callback)

    def cancel(self) -> None:
        """Give it up, from any thread."""
        self.call.give_up()

    def grant(self, items: int, bytes_: int) -> None:
        """Let a stream go on whose items are taken from the call as they came."""
        self.owner.grant(self.call, items, bytes_)

    def value(self, timeout_s: float | None) -> Any:
        """Wait for the result in this thread."""
        if not self.call.wait_done_blocking(timeout_s):
            raise TimeoutError(f"no result after {timeout_s} s; the call goes on")
        return self.call.result()

    async def value_async(self) -> Any:
        """Wait for the result."""
        return await self.call

    def next_item(self) -> Any:
        """The next item, waited for in this thread."""
        if not self.call.wait_item_blocking():
            self.call.raise_end()
        return self.call.take_item()

    async def next_item_async(self) -> Any:
        """The next item."""
        return await self.call.fetch_item()


class PlacedCalls:
    """All of them, of one deployment; owner of the calls.

    Args:
        replicas: Connections to the deployment's replicas.
        mailbox: How other threads reach this loop.
        settings: Limits and windows.
        ended: Where the type of a call's error is noted when it ends.
    """

    def __init__(
        self, replicas: Replicas, mailbox: Mailbox, settings: Settings, *, ended: list[type]
    ) -> None:
        self.loop = mailbox.loop
        self._replicas = replicas
        self._mailbox = mailbox
        self._settings = settings
        self._ended = ended
        self._open: dict[Call, _Placed] = {}
        self._waiting: dict[Connection, deque[_Placed]] = {}
        self._unread: dict[Connection, set[_Placed]] = {}
        self._closed_reason: str | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        return f"<PlacedCalls {len(self._open)} open, {waiting} of them waiting>"

    # ------------------------------------------------------------ sending

    def send(self, request: PlacedRequest) -> _Placed:
        """Send a request to its replica, as soon as that is possible.

        Raises:
            ActorUnavailableError: The replica is no longer there.
            ServeGrpcError: The arguments cannot be serialized, or are too large.
        """
        if self._closed_reason is not None:
            raise ServeGrpcError(self._closed_reason)
        connection = self._replicas.connection_to(request.replica_id)
        if connection is None or connection.peer.state is PeerState.GONE:
            raise _unavailable(request.replica_id, "it has left")
        placed = _Placed(self, request, self._new_call(request, connection), connection)
        call = placed.call
        self._open[call] = placed
        call.place = placed
        call.become_child(request.internal_request_id)
        if call.deadline_s is not None:
            left_s = max(0.0, call.deadline_s - time.monotonic())
            call.expiry = self._mailbox.call_later(left_s, self._expire, call)
        self._waiting.setdefault(connection, deque()).append(placed)
        connection.connect()
        self._send_waiting(connection)
        return placed

    def _new_call(self, request: PlacedRequest, connection: Connection) -> Call:
        fields = request.fields
        envelope = fields.envelope
        fields.credit_items = self._settings.stream_window_items
        fields.credit_bytes = self._settings.stream_window_bytes
        try:
            connection.check_serializers(envelope)
            serializer = get_serializer(envelope.request_serializer)
            fields.payload = serializer.dump_request(request.args, request.kwargs)
            size, limit = len(fields.payload), self._settings.max_message_bytes
            if size > limit:
                raise MessageTooLargeError(size, limit, "request")
        except ServeGrpcError as error:
            error.request_id = fields.request_id
            raise
        return Call(
            fields,
            owner=self,
            mailbox=self._mailbox,
            response_loads=get_serializer(envelope.response_serializer).load_response,
            deadline_s=request.deadline_s,
            is_idempotent=request.is_idempotent,
            # One that may be refused is a try of `remote()`, which is counted as a whole.
            ended=None if request.may_be_refused else self._ended,
        )

    def _send_waiting(self, connection: Connection) -> None:
        waiting = self._waiting.get(connection)
        while waiting:
            placed = waiting[0]
            # With a slot of its own, or where Serve wants the replica's own answer, room is not
            # this side's business.
            goes_anyway = placed.has_slot or placed.may_be_refused
            if not (connection.is_open if goes_anyway else connection.takes_calls):
                return
            waiting.popleft()
            try:
                placed.call_id = outcomes.send(placed.call, connection, is_new=True)
            except ServeGrpcError as error:
                error.request_id = placed.request_id
                self._end(placed, error)
                continue
            if placed.may_be_refused:
                self._unread.setdefault(connection, set()).add(placed)
            else:
                placed.is_admitted()
        self._waiting.pop(connection, None)

    # ------------------------------------------------------------ what the replica says

    def on_change(self, connection: Connection) -> None:
        """Something about this replica is new."""
        unread = self._unread.get(connection)
        for placed in list(unread) if unread else ():
            assert placed.call_id is not None
            if connection.was_read(placed.call_id):
                self._is_read(placed)
        if connection.is_down or connection.peer.state is PeerState.GONE:
            self._lose_waiting(connection, "its session was lost")
        else:
            self._send_waiting(connection)

    def on_replicas(self) -> None:
        """The deployment's replicas are others."""
        for connection in list(self._waiting):
            if self._has_left(connection):
                self._lose_waiting(connection, "it has left")

    def _has_left(self, connection: Connection) -> bool:
        replica_id = connection.peer.facts.replica_id
        return self._replicas.connection_to(replica_id) is not connection

    def _lose_waiting(self, connection: Connection, reason: str) -> None:
        for placed in self._waiting.pop(connection, ()):
            self.on_lost(placed.call, may_have_started=False, reason=reason)

    def _is_read(self, placed: _Placed) -> None:
        placed.is_admitted()
        unread = self._unread.get(placed.connection)
        if unread is not None:
            unread.discard(placed)
            if not unread:
                del self._unread[placed.connection]

    def on_reply(self, call: Call, kind: int, payload: Payload, error: Error | None) -> None:
        """One event of a call."""
        placed = self._open[call]
        self._is_read(placed)
        if kind == CallEventKind.ITEM:
            call.add_item(payload)
            return
        outcomes.end_with_reply(
            call,
            kind,
            payload,
            error,
            connection=placed.connection,
            max_message_bytes=self._settings.max_message_bytes,
        )
        self._end(placed, None)

    def on_rejected(self, calls: list[Call]) -> None:
        """The replica was full: Serve's router looks for another one, or the calls wait here."""
        for call in reversed(calls):
            placed = self._open[call]
            placed.call_id = None
            if not placed.may_be_refused:
                self._waiting.setdefault(placed.connection, deque()).appendleft(placed)
                if self._has_left(placed.connection):  # no more news of it will come
                    self._lose_waiting(placed.connection, "it has left")
            elif not placed.admitted.done():
                placed.admitted.set_result(False)  # Serve's router cancels it then
                self._is_read(placed)

    def on_lost(self, call: Call, *, may_have_started: bool, reason: str) -> None:
        """The session ended under a call: Serve's router asks another replica if none started it.

        A call that may have started, idempotent or not, is its caller's to repeat: `NativeCall`.
        """
        placed = self._open[call]
        if placed.may_be_refused and not placed.admitted.done() and not may_have_started:
            unavailable = _unavailable(placed.connection.peer.facts.replica_id, reason)
            placed.admitted.set_exception(unavailable)
            placed.admitted.exception()  # looked at: Serve's router may have given up meanwhile
        error = outcomes.replica_died(placed.connection, reason, may_have_started=may_have_started)
        error.request_id = placed.request_id
        self._end(placed, error)

    # ------------------------------------------------------------ the end

    def cancel(self, call: Call) -> None:
        """The caller gives the call up."""
        placed = self._open.get(call)
        if placed is not None:
            self._withdraw(placed, RequestCancelledError(placed.request_id))

    def _expire(self, call: Call) -> None:
        placed = self._open.get(call)
        if placed is not None:
            was_sent = placed.call_id is not None
            replica_id = placed.connection.peer.facts.replica_id if was_sent else ""
            trouble = placed.connection.trouble
            why = "" if was_sent or not trouble.reason else f"cannot reach replica {trouble}"
            error = outcomes.expired(replica_id, may_have_executed=was_sent, trouble=why)
            error.request_id = placed.request_id
            self._withdraw(placed, error)

    def _withdraw(self, placed: _Placed, error: Exception) -> None:
        call_id, placed.call_id = placed.call_id, None
        waiting = self._waiting.get(placed.connection)
        if waiting and placed in waiting:
            waiting.remove(placed)
        self._end(placed, error)
        if call_id is not None:
            placed.connection.cancel(call_id)

    def grant(self, call: Call, items: int, bytes_: int) -> None:
        """The consumer took this much of a stream."""
        placed = self._open.get(call)
        if placed is not None and placed.call_id is not None:
            placed.connection.grant(placed.call_id, items, bytes_)

    def close(self, reason: str) -> None:
        """Fail what waits and every later call; calls on their way go on."""
        self._closed_reason = reason
        for waiting in list(self._waiting.values()):
            for placed in list(waiting):
                self._withdraw(placed, ServeGrpcError(reason, request_id=placed.request_id))

    def _end(self, placed: _Placed, error: Exception | None) -> None:
        call = placed.call
        del self._open[call]
        if error is not None:
            call.fail(error)
        self._is_read(placed)
        callbacks, placed.callbacks = placed.callbacks, []
        for callback in callbacks:
            try:
                callback(_as_serve_sees_it(call.error, placed.connection))
            except Exception:  # Serve's, of a loop that may be closed
                logger.exception("could not tell Serve's router of the end of %r", call)


def _unavailable(replica_id: str, reason: str) -> ActorUnavailableError:
    # What Serve's router takes as "not this one, not now".
    return ActorUnavailableError(f"replica {replica_id} cannot be reached: {reason}", None)


def _as_serve_sees_it(error: object, connection: Connection) -> Any:
    if isinstance(error, ReplicaDiedError):
        return _unavailable(connection.peer.facts.replica_id, str(error))
    if isinstance(error, RequestCancelledError):
        return TaskCancelledError()
    return error
