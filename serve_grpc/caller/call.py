"""One call: what was asked, what came back, and who waits for it.

What came back is kept as it came: a payload, or what ended the call as plain data. Each consumer
makes a value or an exception of its own, where it consumes it. How the call gets to a replica and
back is its delivery's business.

A call is made in the thread of `handle.remote()`, travels on the transport's loop and is consumed
in any thread. `end` and `add_item` come from the transport's loop; the `wait` methods from
consumers. The two sides share no lock: a consumer puts its waiter down before it looks again, a
producer writes before it looks for waiters, so one of them always sees the other.
"""

from __future__ import annotations

import asyncio
import threading
import types
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol

from serve_grpc._serve.requests import add_child, remove_child
from serve_grpc.caller.outcomes import Outcome, Result, UserException, Value
from serve_grpc.caller.raising import exception_of
from serve_grpc.errors import ServeGrpcError
from serve_grpc.mailbox import Mailbox
from serve_grpc.payload import ON_LOOP_BYTES, Payload
from serve_grpc.pickling import copied_bytes
from serve_grpc.protocol.caller import RequestFields
from serve_grpc.protocol.flow import ConsumerWindow
from serve_grpc.streams.waiters import Waiter, wake
from serve_grpc.threads import in_thread

__all__ = ["Call", "InTransit"]


class InTransit(Protocol):
    """A call's delivery, by what its consumer may do to it. Called on the transport's loop."""

    def cancel(self) -> None:
        """Give the call up, wherever it is."""

    def grant(self, items: int, bytes_: int) -> None:
        """The consumer took this much of the stream."""

    def describe(self) -> str:
        """Where the call is, in a word; from any thread."""


# Of all calls that are no streams: making a deque takes as long as the other fields together.
_NO_ITEMS: deque[Any] = deque(maxlen=0)


class Call:
    """State of one call.

    Args:
        fields: What goes into the request frame.
        mailbox: How consumers reach the transport's loop.
        response_loads: From the payload to the value.

    Attributes:
        fields, mailbox, response_loads: As given.
        delivery: Its way to a replica and back; None before there is one, and after its end.
        outcome: What ended it; None while it goes on.
        replica_id: Of the replica that has the call, or had it last; None while none has.
        is_cancelled: Whether it was given up.
        is_taken_along: Whether it was cancelled with the request that made it.
        awaiting: How many tasks wait for it.
    """

    __slots__ = (
        "_items",
        "_parent_id",
        "_waiters",
        "_window",
        "awaiting",
        "delivery",
        "fields",
        "is_cancelled",
        "is_taken_along",
        "mailbox",
        "outcome",
        "replica_id",
        "response_loads",
    )

    def __init__(
        self, fields: RequestFields, mailbox: Mailbox, response_loads: Callable[[Any], Any]
    ) -> None:
        self.fields = fields
        self.response_loads = response_loads
        self.delivery: InTransit | None = None
        self.outcome: Outcome | None = None
        self.replica_id: str | None = None
        self.is_cancelled = False
        self.is_taken_along = False
        self.awaiting = 0
        self._parent_id = ""
        self.mailbox = mailbox
        self._waiters: list[Waiter] = []
        self._items = _NO_ITEMS
        self._window: ConsumerWindow | None = None
        if fields.envelope.stream:
            self._items = deque()
            # The replica begins with as much credit, by the same two fields of its request.
            self._window = ConsumerWindow(fields.credit_items, fields.credit_bytes)

    def __repr__(self) -> str:
        delivery = self.delivery
        state = "done" if self.done else "open" if delivery is None else delivery.describe()
        return f"<Call {self.fields.request_id} of {self.fields.envelope.method!r} {state}>"

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.outcome is not None

    def become_child(self, parent_id: str) -> None:
        """Let the cancellation of the request that makes this call reach it.

        Args:
            parent_id: Internal id of that request.
        """
        if self.outcome is None:  # else it was refused, and has no parent to be taken from
            self._parent_id = parent_id
            add_child(parent_id, id(self), self)

    def cancel(self) -> None:
        """The request that made it is cancelled; from any thread. What Serve calls children by."""
        if not self.is_cancelled:
            self.is_taken_along = True
            self.give_up()

    # ------------------------------------------------------------ the transport's side

    def end(self, outcome: Outcome) -> bool:
        """Note what ended the call, and wake who waits; False if it had ended before.

        While it has a delivery, only that may call this: it has to give back what the call holds.
        """
        # No lock: only the transport's loop ends a call that was submitted.
        if self.outcome is not None:
            return False
        # First: a thread that sees the outcome must find the call as it will stay.
        self.fields.payload = b""  # no try follows that would send it
        self.outcome = outcome
        self.delivery = None  # each knows the other; the circle must not wait for the collector
        if self._parent_id:
            remove_child(self._parent_id, id(self))
        # After the outcome, never before: a waiter that is woken looks once and sleeps again.
        if self._waiters:
            self._wake()
        return True

    def add_item(self, payload: Any) -> None:
        """One item of a stream, as it came, or as a `Value`."""
        self._items.append(payload)
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        # A thread may still append to the old list, too late for the copy below. It looks at the
        # outcome and the items after that, and those were written before.
        waiters, self._waiters = self._waiters, []
        transport_loop = self.mailbox.loop
        for waiter in tuple(waiters):  # one that gives up takes itself off the list
            wake(waiter, transport_loop)

    # ------------------------------------------------------------ the consumer's side

    def give_up(self) -> None:
        """Cancel the call, from any thread; it ends with an error soon.

        Never at once, not even on the transport's loop: finalizers call this, ours and the user's,
        and the garbage collector runs them in the midst of anything.
        """
        delivery = self.delivery  # looked at once: the transport's loop takes it away
        if delivery is None or self.is_cancelled or self.outcome is not None:
            return
        self.is_cancelled = True
        try:
            self.mailbox.post(delivery.cancel)
        except RuntimeError:
            return  # the transport's loop is closed; its sessions, and their calls, are gone

    async def wait_done(self) -> None:
        """Return when the call has ended.

        Cancelling the last task that waits here cancels the call.
        """
        while self.outcome is None:
            await self.wait_news()

    def wait_done_blocking(self, timeout_s: float | None) -> bool:
        """Block until the call has ended; False if `timeout_s` passed first."""
        return self.done or self._wait_in_thread(timeout_s)

    @property
    def has_item(self) -> bool:
        """Whether an item is here."""
        return bool(self._items)

    async def wait_item(self) -> bool:
        """Return when there is an item; False if the stream is over instead."""
        while not self._items and self.outcome is None:
            await self.wait_news()
        return bool(self._items)

    def wait_item_blocking(self) -> bool:
        """As `wait_item`, for a thread."""
        while not self._items and self.outcome is None:
            self._wait_in_thread(None)
        return bool(self._items)

    @types.coroutine
    def wait_news(self) -> Generator[Any, None, None]:
        """Return when the call has ended or an item may be there.

        A generator, so that `__await__` of a response drives it with no coroutine in between.
        """
        waiter: asyncio.Future[None] = self.mailbox.running_loop().create_future()
        self._waiters.append(waiter)
        self.awaiting += 1
        try:
            # Looked at again, now that the waiter is down: the producer looks the other way round.
            if self.outcome is None and not self._items:
                yield from waiter
        except asyncio.CancelledError:
            # The last one. Other tasks that await the same response keep the call going.
            if self.awaiting == 1:
                self.give_up()
            raise
        finally:
            self.awaiting -= 1
            if self._waiters:
                self._forget(waiter)

    def _wait_in_thread(self, timeout_s: float | None) -> bool:
        waiter = threading.Event()
        self._waiters.append(waiter)
        try:
            # As in `wait_news`: the waiter is down, so look again before sleeping.
            return self.done or bool(self._items) or waiter.wait(timeout_s)
        finally:
            self._forget(waiter)

    def _forget(self, waiter: Waiter) -> None:
        try:
            self._waiters.remove(waiter)
        except ValueError:
            return  # it was woken

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the result of a unary call, on any event loop.

        Raises:
            BaseException: What the call failed with.
            asyncio.CancelledError: The request that made the call was cancelled.
        """
        while self.outcome is None:
            yield from self.wait_news()
        outcome = self.outcome
        if type(outcome) is Result:
            payload = outcome.payload
            # Unpickling megabytes would hold up all else on the consumer's loop (decision 0017).
            if len(payload) > ON_LOOP_BYTES and copied_bytes(payload) > ON_LOOP_BYTES:
                return (yield from in_thread(self.load, payload))
            return self.load(payload)
        if type(outcome) is Value:
            return outcome.value
        assert outcome is not None
        raise (yield from self._failure(outcome))

    @types.coroutine
    def fetch_item(self) -> Generator[Any, None, Any]:
        """Wait for the next item of a stream, on an event loop; raises as `await` does.

        Raises:
            StopAsyncIteration: The stream is complete.
        """
        while not self._items:
            outcome = self.outcome
            if outcome is None:
                yield from self.wait_news()
            elif not self._items:  # looked at again: the last item may have come before the end
                if outcome.is_ok:
                    raise StopAsyncIteration
                raise (yield from self._failure(outcome))
        if len(self._items[0]) <= ON_LOOP_BYTES or copied_bytes(self._items[0]) <= ON_LOOP_BYTES:
            return self.take_item()
        payload, is_back = self._items.popleft(), False
        try:
            return (yield from in_thread(self.load, payload))
        except asyncio.CancelledError:
            self._items.appendleft(payload)  # it comes before the others
            is_back = True
            raise
        finally:
            if not is_back:
                self.took(payload)

    def _failure(self, outcome: Outcome) -> Generator[Any, None, BaseException]:
        # As Serve's (`DeploymentResponse.__await__`): RequestCancelledError is for a call that its
        # own `cancel()` ended, not for one that went with its parent.
        if self.is_taken_along and outcome.is_cancelled:
            return asyncio.CancelledError()
        if type(outcome) is UserException:  # the import of its module may take long
            loaded: BaseException = yield from in_thread(outcome.remote.load)
            return loaded
        return exception_of(outcome, self.fields.request_id)

    def exception(self) -> BaseException | None:
        """What a call that failed raises, a new one each time; None if it went well, or goes on."""
        outcome = self.outcome
        if outcome is None or outcome.is_ok:
            return None
        return exception_of(outcome, self.fields.request_id)

    @property
    def payload(self) -> Payload | None:
        """The result as it came; None if the call failed, goes on, or has a value."""
        return self.outcome.payload if type(self.outcome) is Result else None

    def result(self) -> Any:
        """The value of a call that is done, a new one each time; raises its error."""
        outcome = self.outcome
        if type(outcome) is Result:
            return self.load(outcome.payload)
        if type(outcome) is Value:
            return outcome.value
        assert outcome is not None
        raise exception_of(outcome, self.fields.request_id)

    def take_item(self) -> Any:
        """The next item; only when a wait said that there is one."""
        # Credit first: an item that cannot be loaded has been taken all the same, and the stream
        # would stand still without it.
        payload = self._items.popleft()
        self.took(payload)
        return payload.value if type(payload) is Value else self.load(payload)

    def raise_end(self) -> NoReturn:
        """Raise what ended a stream, in a thread: its error, or StopIteration."""
        error = self.exception()
        raise StopIteration if error is None else error

    def took(self, payload: Any) -> None:
        """Grant credit for an item that was taken."""
        delivery = self.delivery
        if self._window is not None and delivery is not None:
            # Not for each item: the window says when enough came together for one frame.
            due = self._window.took(len(payload))
            if due is not None:
                self.mailbox.run(delivery.grant, *due)

    def pass_item(self) -> Any:
        """The next item as it came, for who passes it on, and calls `took` or grants credit."""
        return self._items.popleft()

    def load(self, payload: Any) -> Any:
        """The value of a result or an item."""
        try:
            return self.response_loads(payload)
        except ServeGrpcError as error:
            error.request_id, error.may_have_executed = self.fields.request_id, True
            raise
