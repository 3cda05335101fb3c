"""One call: what was asked, what came back, and who waits for it.

What came back is kept as it came. The transport runs no code of the user's for it: each consumer
makes a value or an exception of its own, where it consumes it.

A call is made in the thread of `handle.remote()`, travels on the transport's loop and is consumed
in any thread. `_finish` and `add_item` come from the transport's loop; the `wait` methods from
consumers. The two sides share no lock: a consumer puts its waiter down before it looks again, a
producer writes before it looks for waiters, so one of them always sees the other.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._serve.exceptions import RemoteException
from serve_grpc._serve.requests import add_child, remove_child
from serve_grpc.caller.lending import Loan
from serve_grpc.caller.waiters import AsyncWaiter, ThreadWaiter
from serve_grpc.errors import ServeGrpcError
from serve_grpc.foreign import another
from serve_grpc.payload import ON_LOOP_BYTES, Payload
from serve_grpc.protocol.caller import RequestFields
from serve_grpc.protocol.flow import ConsumerWindow
from serve_grpc.threads import in_thread
from serve_grpc.transport.mailbox import Mailbox

__all__ = ["Call", "CallOwner"]


class CallOwner(Protocol):
    """Who carries a call. Called on the transport's loop."""

    def cancel(self, call: Call) -> None:
        """Give the call up, wherever it is."""

    def grant(self, call: Call, items: int, bytes_: int) -> None:
        """The consumer took this much of the stream."""


class Call:
    """State of one call.

    Attributes:
        fields: What goes into the request frame.
        native: Makes the same call over Serve's own transport; set where that may be needed,
            because the deployment has no endpoint of ours or it is not known yet whether it has.
        is_idempotent: Whether it may be repeated after it may have started.
        may_have_executed: Whether a try of it that was lost may have started.
        deadline_s: On `time.monotonic`, None for none.
        response_loads: From the payload to the value.
        parent_id: Internal id of the request that made the call and cancels it with itself, or "".
        is_taken_along: Whether it was cancelled with the request that made it.
        ended: Where the type of its error is noted when it ends; None if nobody counts it.
        queued_s: When it began to wait for a replica, on `time.monotonic`; 0 if it never did.
        done: Whether it has ended.
        payload: The result as it came; None if it failed, or has a value.
        value: The result where it came as one, over Serve's own transport: if `has_value`.
        error: Why it failed; `exception` makes of it what consumers raise.
        loan: The ObjectRefs that its arguments name, from when it was sent to its end, or None.
    """

    __slots__ = (
        "_items",
        "_mailbox",
        "_owner",
        "_waiters",
        "_window",
        "awaiting",
        "deadline_s",
        "done",
        "ended",
        "error",
        "expiry",
        "fields",
        "has_items",
        "has_value",
        "is_cancelled",
        "is_idempotent",
        "is_queued",
        "is_taken_along",
        "loan",
        "may_have_executed",
        "native",
        "parent_id",
        "payload",
        "place",
        "queued_s",
        "response_loads",
        "sequence",
        "value",
    )

    def __init__(
        self,
        fields: RequestFields,
        *,
        owner: CallOwner,
        mailbox: Mailbox,
        response_loads: Callable[[Any], Any],
        deadline_s: float | None,
        is_idempotent: bool,
        ended: list[type] | None = None,
    ) -> None:
        self.fields = fields
        self.native: Callable[[], Any] | None = None
        self.is_idempotent = is_idempotent
        self.may_have_executed = False
        self.deadline_s = deadline_s
        self.response_loads = response_loads
        self.ended = ended
        self.done = False
        self.error: BaseException | RemoteException | None = None
        self.payload: Payload | None = None
        self.value: Any = None
        self.has_value = False
        self.is_cancelled = False
        self.is_taken_along = False
        self.parent_id = ""
        self.awaiting = 0
        # The router's and the connection's notes.
        self.place: Any = None
        self.sequence = 0
        self.is_queued = False
        self.queued_s = 0.0
        self.expiry: asyncio.TimerHandle | None = None
        self.has_items = False
        self.loan: Loan | None = None
        self._owner = owner
        self._mailbox = mailbox
        self._waiters: list[AsyncWaiter | ThreadWaiter] = []
        self._items: deque[Any] = deque()
        self._window: ConsumerWindow | None = None
        if fields.envelope.stream:
            self._window = ConsumerWindow(fields.credit_items, fields.credit_bytes)

    def __repr__(self) -> str:
        state = "done" if self.done else "queued" if self.is_queued else "open"
        return f"<Call {self.fields.request_id} of {self.fields.envelope.method!r} {state}>"

    def become_child(self, parent_id: str) -> None:
        """Let the cancellation of the request that makes this call reach it."""
        self.parent_id = parent_id
        add_child(parent_id, id(self), self)

    def cancel(self) -> None:
        """The request that made it is cancelled; from any thread. What Serve calls children by."""
        if not self.is_cancelled:
            self.is_taken_along = True
            self.give_up()

    # ------------------------------------------------------------ the transport's side

    def succeed(self, payload: Payload) -> None:
        """The result of a unary call, or the end of a stream."""
        if not self.done:
            self.payload = payload
            self._finish()

    def succeed_with(self, value: Any) -> None:
        """A result that needs no deserializing."""
        if not self.done:
            self.value, self.has_value = value, True
            self._finish()

    def fail(self, error: BaseException | RemoteException) -> None:
        """The call ended with an error."""
        if not self.done:
            # One of ours that is a RayTaskError is the user's, of a call that an argument is of.
            if isinstance(error, ServeGrpcError) and not isinstance(error, RayTaskError):
                # The last try did not start, but an earlier one may have.
                error.may_have_executed |= self.may_have_executed
            self.error = error
            self._finish()

    def add_item(self, payload: Any) -> None:
        """One item of a stream."""
        self.has_items = True
        self._items.append(payload)
        if self._waiters:
            self._wake()

    def _finish(self) -> None:
        self.done = True
        if self.ended is not None:
            self.ended.append(type(self.error))
        self.native = None
        self.fields.payload = b""  # no try follows that would send it
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        if self.parent_id:
            remove_child(self.parent_id, id(self))
        if self.loan is not None:
            self.loan.settle(is_answered=self.error is None)
            self.loan = None  # the response may be kept for long
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        transport_loop = self._mailbox.loop
        for waiter in tuple(waiters):  # one that gives up takes itself off the list
            waiter.wake(transport_loop)

    # ------------------------------------------------------------ the consumer's side

    def give_up(self) -> None:
        """Cancel the call, from any thread; it ends with an error soon.

        Never at once, not even on the transport's loop: finalizers call this, ours and the user's,
        and the garbage collector runs them in the midst of anything.
        """
        if self.done or self.is_cancelled:
            return
        self.is_cancelled = True
        try:
            self._mailbox.post(self._owner.cancel, self)
        except RuntimeError:
            return  # the transport's loop is closed; its sessions, and their calls, are gone

    async def wait_done(self) -> None:
        """Return when the call has ended.

        Cancelling the last task that waits here cancels the call.
        """
        while not self.done:
            await self.wait_news()

    def wait_done_blocking(self, timeout_s: float | None) -> bool:
        """Block until the call has ended; False if `timeout_s` passed first."""
        return self.done or self._wait_in_thread(timeout_s)

    async def wait_item(self) -> bool:
        """Return when there is an item; False if the stream is over instead."""
        while not self._items and not self.done:
            await self.wait_news()
        return bool(self._items)

    def wait_item_blocking(self) -> bool:
        """As `wait_item`, for a thread."""
        while not self._items and not self.done:
            self._wait_in_thread(None)
        return bool(self._items)

    @types.coroutine
    def wait_news(self) -> Generator[Any, None, None]:
        """Return when the call has ended or an item may be there.

        A generator, so that `__await__` of a response drives it with no coroutine in between.
        """
        mailbox = self._mailbox
        waiter = AsyncWaiter(mailbox.loop if mailbox.is_current else asyncio.get_running_loop())
        self._waiters.append(waiter)
        self.awaiting += 1
        try:
            # Looked at again, now that the waiter is down: the producer looks the other way round.
            if not self.done and not self._items:
                yield from waiter.future
        except asyncio.CancelledError:
            if self.awaiting == 1:
                self.give_up()
            raise
        finally:
            self.awaiting -= 1
            if self._waiters:
                self._forget(waiter)

    def _wait_in_thread(self, timeout_s: float | None) -> bool:
        waiter = ThreadWaiter()
        self._waiters.append(waiter)
        try:
            return self.done or bool(self._items) or waiter.event.wait(timeout_s)
        finally:
            self._forget(waiter)

    def _forget(self, waiter: AsyncWaiter | ThreadWaiter) -> None:
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
        while not self.done:
            yield from self.wait_news()
        if self.error is not None:
            raise (yield from self._failure())
        payload = self.payload
        if payload is not None and len(payload) > ON_LOOP_BYTES:
            return (yield from in_thread(self.load, payload))
        return self.result()

    @types.coroutine
    def fetch_item(self) -> Generator[Any, None, Any]:
        """Wait for the next item of a stream, on an event loop; raises as `await` does.

        Raises:
            StopAsyncIteration: The stream is complete.
        """
        while not self._items:
            if self.done:
                if self.error is None:
                    raise StopAsyncIteration
                raise (yield from self._failure())
            yield from self.wait_news()
        if self.has_value or len(self._items[0]) <= ON_LOOP_BYTES:
            return self.take_item()
        payload, is_back = self._items.popleft(), False
        try:
            return (yield from in_thread(self.load, payload))
        except asyncio.CancelledError:
            self._items.appendleft(payload)  # its place is before the others
            is_back = True
            raise
        finally:
            if not is_back:
                self._took(payload)

    def _failure(self) -> Generator[Any, None, BaseException]:
        error = self.error
        if self.is_taken_along and isinstance(error, RequestCancelledError):
            return asyncio.CancelledError()
        if isinstance(error, RemoteException):
            loaded: BaseException = yield from in_thread(error.load)
            return loaded
        return self.exception()

    def exception(self) -> BaseException:
        """What a call that failed raises, a new one each time; where it is the user's, its module
        may have to be imported.
        """
        error = self.error
        assert error is not None
        return error.load() if isinstance(error, RemoteException) else another(error)

    def result(self) -> Any:
        """The value of a call that is done, a new one each time; raises its error."""
        if self.error is not None:
            raise self.exception()
        return self.value if self.has_value else self.load(self.payload)

    def take_item(self) -> Any:
        """The next item; only when a wait said that there is one."""
        payload = self._items.popleft()
        self._took(payload)
        return payload if self.has_value else self.load(payload)

    def raise_end(self) -> NoReturn:
        """Raise what ended a stream, in a thread: its error, or StopIteration."""
        if self.error is None:
            raise StopIteration
        raise self.exception()

    def _took(self, payload: Any) -> None:
        if self._window is not None and not self.done:
            # Items of Serve's own transport come as values, of unknown size.
            due = self._window.took(0 if self.has_value else len(payload))
            if due is not None:
                self._mailbox.run(self._owner.grant, self, *due)

    def pass_item(self) -> Any:
        """The next item as it came, for who passes it on, and grants credit for it."""
        return self._items.popleft()

    def load(self, payload: Any) -> Any:
        """The value of a result or an item."""
        try:
            return self.response_loads(payload)
        except ServeGrpcError as error:
            error.request_id, error.may_have_executed = self.fields.request_id, True
            raise
