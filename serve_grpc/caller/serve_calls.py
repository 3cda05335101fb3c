"""Calls that are left to Serve's own router.

Used where the deployment has a request router of its own, and where calls go over Serve's own
transport. The response that Serve makes is consumed in a task on the transport's loop and fills the
call: so deadlines hold, which that transport does not know, an error of gRPC becomes one of ours,
and a CancelledError that nobody here caused is told from one that somebody did. Of a stream no more
is taken than the call's consumer gave credit for. What our sessions carry is passed on as it came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError

from serve_grpc._serve.request_routers import AssignedCall, assigned_behind
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.events import note
from serve_grpc.caller.outcomes import (
    Cancelled,
    GivenUp,
    Raised,
    Result,
    UserException,
    Value,
)
from serve_grpc.carriers.grpc.serves_errors import as_documented
from serve_grpc.debugging import is_debugged
from serve_grpc.errors import ReplicaDiedError, SerializationError, ServeGrpcError
from serve_grpc.foreign import is_interrupt, name_of, text_of
from serve_grpc.protocol.flow import ProducerWindow
from serve_grpc.routing.retry import RetryBudget

__all__ = ["ServeCall", "ServeCalls"]


class ServeCall:
    """One of them: the stage of its delivery. Starts at once; on the transport's loop.

    Args:
        delivery: Of the call that it fills.
        budget: Of repeated calls.
        on_over: Called with the delivery when nothing of the call goes on any more.
    """

    may_have_started = True

    def __init__(
        self, delivery: Delivery, budget: RetryBudget, *, on_over: Callable[[Delivery], None]
    ) -> None:
        fields = delivery.call.fields
        assert delivery.make_serve_call is not None
        self._delivery = delivery
        self._make = delivery.make_serve_call
        self._budget = budget
        self._assigned: AssignedCall | None = None
        self._is_serves = False  # Serve's own transport carries it
        self._window = ProducerWindow(fields.credit_items, 1)  # values are of unknown size
        self._granted = asyncio.Event()
        # Kept here: a loop holds its tasks weakly, and a collected one would leave the call open.
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(lambda _: on_over(delivery))

    def withdraw(self, delivery: Delivery) -> None:
        """The call is ending: if something else ended it, cancel Serve's."""
        # Else it is the task that ends the call, as Serve's has ended: nothing is left to cancel.
        if asyncio.current_task() is not self._task:
            self._task.cancel()

    def describe(self) -> str:
        """Where the call is."""
        return "at Serve's router"

    def grant(self, items: int, bytes_: int) -> None:
        """The consumer took this much of a stream."""
        if self._assigned is not None:
            self._assigned.grant(items, bytes_)
        else:
            self._window.grant(items, 0)
            self._granted.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._consume(self._make())
                return
            except asyncio.CancelledError:
                # Whoever gives the call up has ended it by now. Else the handler raised this.
                self._delivery.end(Cancelled())
                raise
            # Serve unpickles the user's exception in this task: `SystemExit` may come of it (0017).
            except BaseException as error:
                if is_interrupt(error):
                    raise
                if not self._may_repeat(error):
                    self._fail(error)
                    return

    def _fail(self, error: BaseException) -> None:
        fields = self._delivery.call.fields
        ours = as_documented(error)
        if not isinstance(error, Exception):  # Serve loads what arrives in this very task
            ours = SerializationError(
                f"loading the response raised {name_of(error)}: {text_of(error)}",
                serializer=fields.envelope.response_serializer,
                direction="response",
                may_have_executed=True,
            )
        if self._is_serves and isinstance(error, ServeGrpcError):
            error.may_have_executed = True  # it is the handler's, whatever befell a call of its own
        if ours is not None:
            ours.request_id = fields.request_id
            ours.__cause__ = error
        self._delivery.end(Raised(error if ours is None else ours))

    async def _consume(self, response: Any) -> None:
        delivery = self._delivery
        try:
            self._assigned = await assigned_behind(response)
            self._is_serves = self._assigned is None
            if self._assigned is not None:
                delivery.call.replica_id = self._assigned.call.replica_id
                await self._pass_on(self._assigned.call)
            elif delivery.call.fields.envelope.stream:
                await self._fill(response)
            else:
                delivery.end(Value(await response))
        except asyncio.CancelledError:
            # Not implied: an actor call whose ObjectRef nobody awaits any more runs on.
            response.cancel()
            raise

    async def _pass_on(self, assigned: Call) -> None:
        delivery = self._delivery
        while await assigned.wait_item():
            delivery.has_items = True
            delivery.call.add_item(assigned.pass_item())
        outcome = assigned.outcome
        assert outcome is not None
        if type(outcome) is Result or type(outcome) is UserException:
            delivery.end(outcome)
            return
        error = assigned.exception()
        assert error is not None
        raise error

    async def _fill(self, response: Any) -> None:
        async for item in response:
            self._delivery.has_items = True
            self._delivery.call.add_item(Value(item))
            self._window.spend(0)
            # Serve's generator has no flow control of ours; not asking it for more is all there is.
            while not self._window.is_open:
                self._granted.clear()
                await self._granted.wait()
        self._delivery.end(Value(None))

    def _may_repeat(self, error: BaseException) -> bool:
        # What Serve's own transport may repeat, Serve's router has repeated. From there, and as a
        # RayTaskError, this is the answer of a handler, whose own call was lost.
        delivery = self._delivery
        if self._is_serves or isinstance(error, RayTaskError):
            return False
        if not isinstance(error, ReplicaDiedError):
            return False
        if delivery.has_items or (error.may_have_executed and not delivery.may_run_twice):
            return False
        # Last of the checks, for asking spends.
        if not self._budget.try_spend(time.monotonic()):
            return False
        delivery.may_have_executed |= error.may_have_executed
        delivery.call.replica_id = None
        if is_debugged():
            note("request %s: will be made again: %s", delivery.request_id, error)
        return True


class ServeCalls:
    """Those of one router that are under way.

    Serve's router waits for a replica for ever, even when Serve is gone, so it is known here which
    calls are at its mercy.

    Args:
        budget: Of repeated calls.
    """

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._open: set[Delivery] = set()

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<ServeCalls {len(self)} under way>"

    def start(self, delivery: Delivery, *, is_fallback: bool) -> None:
        """Leave a call to Serve's own router.

        Args:
            delivery: Of a call that was made when this was to be expected.
            is_fallback: Whether Serve's own transport carries it, too.
        """
        if delivery.make_serve_call is None:
            # It was on its way when the deployment was replaced by one without an endpoint.
            delivery.end(GivenUp("the deployment no longer has an endpoint"))
            return
        if is_fallback:
            # Else `serve_grpc_calls` would count it as one of ours.
            delivery.is_counted_by_serve()
        delivery.span = None  # Serve's router makes a span of its own
        if is_debugged():
            note("request %s: left to Serve's own router", delivery.request_id)
        self._open.add(delivery)
        delivery.stage = ServeCall(delivery, self._budget, on_over=self._open.discard)

    def fail_all(self, reason: str) -> None:
        """End them with an error. Which of them have begun only Serve's router knows."""
        for delivery in tuple(self._open):
            delivery.end(GivenUp(reason, may_have_executed=True))
