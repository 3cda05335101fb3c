"""Calls to the one replica that Serve's own router chose for them.

A deployment's own request router, `choose_replica`, `dispatch` and `broadcast` end here. A call
waits only for its own replica: for the session, and for room where it may not be turned away. On
the router's loop. Invariant: each call given to `send` ends once, and its callbacks run after that.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorUnavailableError, TaskCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.request_routers import AssignedRequest
from serve_grpc.caller.call import Call
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.events import note
from serve_grpc.caller.inputs import inputs_among, taken_out
from serve_grpc.caller.outcomes import GivenUp, Lost, Outcome, UserException
from serve_grpc.caller.raising import exception_of
from serve_grpc.caller.replicas import Replicas
from serve_grpc.config import Settings
from serve_grpc.debugging import is_debugged
from serve_grpc.errors import MessageTooLargeError, ServeGrpcError
from serve_grpc.foreign import run_foreign
from serve_grpc.mailbox import Mailbox
from serve_grpc.routing.peer import PeerState
from serve_grpc.serialization import get_serializer

__all__ = ["AssignedCalls"]


class _Assigned:
    """One call: the chooser of its delivery, and what Serve's router gets for it (`AssignedCall`).

    It chooses nothing: Serve's router did. So there is one for each call.

    Attributes:
        call, delivery: Of the request.
        connection: To the replica that was chosen.
        may_be_refused: Whether the replica may turn it away; Serve's router then asks another one.
        goes_anyway: Whether room is not this side's business: it has a slot of its own, or Serve
            wants the replica's own answer.
    """

    def __init__(
        self, room: AssignedCalls, request: AssignedRequest, call: Call, connection: Connection
    ) -> None:
        self.call = call
        self.connection = connection
        self.request_id = request.fields.request_id
        self.may_be_refused = request.may_be_refused
        self.goes_anyway = bool(request.fields.reserved_slot) or request.may_be_refused
        self._room = room
        self._admitted: asyncio.Future[bool] = room.loop.create_future()
        self._callbacks: list[Callable[[Any], None]] = []
        self.delivery = room.deliver(self, request)

    # ------------------------------------------------------------ for Serve's router

    async def admission(self) -> tuple[bool, int]:
        """Whether the replica took it, and how many requests ran there.

        Raises:
            ActorUnavailableError: It was lost before that; another one may be asked.
        """
        return await asyncio.shield(self._admitted), self.connection.peer.load

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it with the call's error, or None; at once if the call has ended."""
        if self.call.outcome is not None:
            callback(self._as_serve_sees_it(self.call.outcome))
        else:
            self._callbacks.append(callback)

    def cancel(self) -> None:
        """Give it up, from any thread."""
        self.call.give_up()

    def grant(self, items: int, bytes_: int) -> None:
        """Let a stream go on whose items are taken from the call as they came."""
        self.delivery.grant(items, bytes_)

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

    # ------------------------------------------------------------ the chooser

    def on_sent(self, replica_id: str) -> None:
        """Serve's router counts its own requests."""
        if self.may_be_refused:
            self._room.await_reading(self)
        else:
            self.is_admitted(True)

    def on_left(self, replica_id: str) -> None:
        """As `on_sent`."""

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        """Serve's router has its own idea of replicas that fail their calls."""

    def on_rejected(self, delivery: Delivery, connection: Connection) -> None:
        """The replica was full: Serve's router looks for another one, or the call waits here."""
        if self.may_be_refused:
            self.is_admitted(False)  # Serve's router cancels it then
        else:
            self._room.wait(self, is_back=True)

    def on_ready(self, delivery: Delivery) -> None:
        """The call goes to its replica now."""
        self._room.wait(self, is_back=True)
        self._room.send_waiting(self.connection)

    def takes_back(self, delivery: Delivery, lost: Lost) -> bool:
        """A call that may have started, idempotent or not, is its caller's to repeat: `ServeCall`.

        One that did not start Serve's router sends to another replica: see `on_end`.
        """
        return False

    def on_end(self, delivery: Delivery, outcome: Outcome) -> None:
        """Tell Serve's router: whether the replica had the call, and then of the end."""
        has_not_started = type(outcome) is Lost and not outcome.may_have_started
        if self.may_be_refused and has_not_started and not self._admitted.done():
            lost: Any = outcome
            self._admitted.set_exception(_unavailable(lost.replica_id, lost.reason))
            self._admitted.exception()  # looked at: Serve's router may have given up meanwhile
        self.is_admitted(True)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._room.tell_serve(callback, self._as_serve_sees_it(outcome))

    def trouble(self) -> str:
        """Why the replica cannot be reached."""
        trouble = self.connection.trouble
        return f"cannot reach replica {trouble}" if trouble.reason else ""

    def is_admitted(self, is_taken: bool) -> None:
        """The replica is known to have taken the call, or to have turned it away."""
        if not self._admitted.done():
            self._admitted.set_result(is_taken)
        self._room.was_read(self)

    def _as_serve_sees_it(self, outcome: Outcome) -> Any:
        if outcome.is_ok:
            return None
        if type(outcome) is UserException:
            return outcome.remote  # Serve asks for its type only, and this loop loads none
        if type(outcome) is Lost:
            died = exception_of(outcome, self.request_id)
            return _unavailable(outcome.replica_id, str(died))
        if outcome.is_cancelled:
            return TaskCancelledError()
        return exception_of(outcome, self.request_id)


class AssignedCalls:
    """All of them, of one deployment; the stage of those that wait for their replica.

    Args:
        replicas: Connections to the deployment's replicas.
        mailbox: How other threads reach this loop.
        settings: Limits and windows.
        ended: Where the kind of a call's outcome is noted when it ends.
    """

    may_have_started = False

    def __init__(
        self, replicas: Replicas, mailbox: Mailbox, settings: Settings, *, ended: list[str]
    ) -> None:
        self.loop = mailbox.loop
        self._replicas = replicas
        self._mailbox = mailbox
        self._settings = settings
        self._ended = ended
        self._waiting: dict[Connection, deque[_Assigned]] = {}
        self._unread: dict[Connection, set[_Assigned]] = {}
        self._closed_reason: str | None = None

    def __bool__(self) -> bool:
        """Whether the news of a replica may concern one of them."""
        return bool(self._waiting or self._unread)

    def __repr__(self) -> str:
        waiting, unread = (sum(map(len, d.values())) for d in (self._waiting, self._unread))
        return f"<AssignedCalls {waiting} waiting, {unread} not yet read>"

    # ------------------------------------------------------------ sending

    def send(self, request: AssignedRequest) -> _Assigned:
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
        assigned = _Assigned(self, request, self._new_call(request, connection), connection)
        assigned.call.become_child(request.internal_request_id)
        if request.deadline_s is not None:
            assigned.delivery.expire_after(request.deadline_s - time.monotonic())
        self.wait(assigned)
        connection.connect()
        self.send_waiting(connection)
        if assigned.delivery.stage is self and is_debugged():
            note("request %s: waits for %s", assigned.request_id, request.replica_id)
        return assigned

    def _new_call(self, request: AssignedRequest, connection: Connection) -> Call:
        fields = request.fields
        envelope = fields.envelope
        fields.credit_items = self._settings.stream_window_items
        fields.credit_bytes = self._settings.stream_window_bytes
        try:
            connection.check_serializers(envelope)
            serializer = get_serializer(envelope.request_serializer)
            args, kwargs, inputs = taken_out(request.args, request.kwargs, serializer.name)
            if inputs is not None:
                fields.inputs = inputs.places
            fields.payload = serializer.dump_request(args, kwargs)
            size, limit = len(fields.payload), self._settings.max_message_bytes
            if size > limit and not self._settings.stores_oversize:
                raise MessageTooLargeError(size, limit, "request")
        except ServeGrpcError as error:
            error.request_id = fields.request_id
            raise
        loads = get_serializer(envelope.response_serializer).load_response
        return Call(fields, mailbox=self._mailbox, response_loads=loads)

    def deliver(self, assigned: _Assigned, request: AssignedRequest) -> Delivery:
        """The way of one of them."""
        delivery = Delivery(
            assigned.call,
            assigned,
            deadline_s=request.deadline_s,
            is_idempotent=request.is_idempotent,
            # One that may be refused is a try of `remote()`, which is counted as a whole.
            ended=None if request.may_be_refused else self._ended,
        )
        if request.fields.inputs:
            delivery.inputs = inputs_among(request.args, request.kwargs)
            delivery.inputs.belong_to(delivery)  # unless it is a try of `remote()`
        return delivery

    def send_waiting(self, connection: Connection) -> None:
        """Send those that wait for this replica, as far as it takes them."""
        waiting = self._waiting.get(connection)
        while waiting:
            assigned = waiting[0]
            if not (connection.is_open if assigned.goes_anyway else connection.takes_calls):
                return
            waiting.popleft()
            assigned.delivery.stage = None
            assigned.delivery.send(connection, is_new=True)
        self._waiting.pop(connection, None)

    # ------------------------------------------------------------ who waits

    def wait(self, assigned: _Assigned, *, is_back: bool = False) -> None:
        """Let a call wait for its replica, before the others if it has been there."""
        assigned.delivery.stage = self
        waiting = self._waiting.setdefault(assigned.connection, deque())
        if not is_back:
            waiting.append(assigned)
            return
        assigned.call.replica_id = None
        waiting.appendleft(assigned)
        if is_debugged():
            replica_id = assigned.connection.peer.facts.replica_id
            note("request %s: waits for %s", assigned.request_id, replica_id)
        if self._has_left(assigned.connection):  # no more news of it will come
            self._lose_waiting(assigned.connection, "it has left")

    def withdraw(self, delivery: Delivery) -> None:
        """The call waits no longer."""
        assigned = delivery.chooser
        assert isinstance(assigned, _Assigned)
        waiting = self._waiting[assigned.connection]
        waiting.remove(assigned)
        if not waiting:
            del self._waiting[assigned.connection]

    def grant(self, items: int, bytes_: int) -> None:
        """Nothing came of a call that waits."""

    def describe(self) -> str:
        """Where the call is."""
        return "queued"

    def await_reading(self, assigned: _Assigned) -> None:
        """Look at each news of the replica whether it has read this request."""
        self._unread.setdefault(assigned.connection, set()).add(assigned)

    def was_read(self, assigned: _Assigned) -> None:
        """Look no longer."""
        unread = self._unread.get(assigned.connection)
        if unread is not None:
            unread.discard(assigned)
            if not unread:
                del self._unread[assigned.connection]

    # ------------------------------------------------------------ news

    def on_change(self, connection: Connection) -> None:
        """Something about this replica is new."""
        unread = self._unread.get(connection)
        for assigned in list(unread) if unread else ():
            if assigned.delivery.was_read:
                assigned.is_admitted(True)
        if connection.is_down or connection.peer.state is PeerState.GONE:
            self._lose_waiting(connection, "its session was lost")
        else:
            self.send_waiting(connection)

    def on_replicas(self) -> None:
        """The deployment's replicas are others."""
        for connection in list(self._waiting):
            if self._has_left(connection):
                self._lose_waiting(connection, "it has left")

    def _has_left(self, connection: Connection) -> bool:
        replica_id = connection.peer.facts.replica_id
        return self._replicas.connection_to(replica_id) is not connection

    def _lose_waiting(self, connection: Connection, reason: str) -> None:
        facts = connection.peer.facts
        for assigned in self._waiting.pop(connection, ()):
            assigned.delivery.stage = None
            assigned.delivery.end(Lost(facts.replica_id, facts.actor_id, reason, False))

    def close(self, reason: str) -> None:
        """Fail what waits and every later call; calls on their way go on."""
        self._closed_reason = reason
        waiting = [assigned for line in self._waiting.values() for assigned in line]
        for assigned in waiting:
            assigned.delivery.end(GivenUp(reason))

    def tell_serve(self, callback: Callable[[Any], None], error: Any) -> None:
        """Run a callback of Serve's router, when no state is changing any more."""
        self._mailbox.post(run_foreign, "tell Serve's router of an end", callback, error)


def _unavailable(replica_id: str, reason: str) -> ActorUnavailableError:
    # What Serve's router takes as "not this one, not now".
    return ActorUnavailableError(f"replica {replica_id} cannot be reached: {reason}", None)
