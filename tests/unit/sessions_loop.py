"""A transport's loop in a thread of its own, and a way of calls that only takes notes."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

from serve_grpc.caller.call import Call
from serve_grpc.caller.outcomes import Raised
from serve_grpc.mailbox import mailbox_of
from serve_grpc.protocol.caller import Envelope
from tests.unit.sessions import STREAM, UNARY, fields

PATIENCE_S = 30.0


def until(condition: Callable[[], object]) -> None:
    """Return once `condition()` holds; fail after half a minute."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, "the condition never held"
        time.sleep(0.001)


class Cancelled(Exception):
    """What a cancelled call ends with here."""


class InTransit:
    """The way of a call, as the call sees it. `where` is what it says of it."""

    def __init__(self, transport: TransportLoop, call: Call) -> None:
        self._transport, self._call = transport, call
        self.where = "open"

    def cancel(self) -> None:
        self._transport.cancel(self._call)

    def grant(self, items: int, bytes_: int) -> None:
        self._transport.grant(items, bytes_)

    def describe(self) -> str:
        return self.where


class TransportLoop:
    """Carries the calls it makes. Its loop runs until `stop`.

    Attributes:
        cancelled: Calls given up, in order.
        grants: (items, bytes) given back by consumers, in order.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.cancelled: list[Call] = []
        self.grants: list[tuple[int, int]] = []
        self.is_deaf = False
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Of its thread."""
        return self._thread.ident

    def stop(self) -> None:
        """End the thread and close the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()

    def run(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` on the loop, behind what was posted before, and wait for it."""
        done = threading.Event()
        mailbox = mailbox_of(self.loop)
        mailbox.post(function, *args)
        mailbox.post(done.set)
        assert done.wait(PATIENCE_S)

    def new_call(self, envelope: Envelope = UNARY, **changes: Any) -> Call:
        """A call that this loop carries; streams have a window of 4 items or 100 bytes."""
        arguments: dict[str, Any] = {
            "mailbox": mailbox_of(self.loop),
            "response_loads": pickle.loads,
        }
        request = fields(envelope=envelope, credit_items=4, credit_bytes=100)
        call = Call(request, **{**arguments, **changes})
        call.delivery = InTransit(self, call)
        return call

    def new_stream(self, **changes: Any) -> Call:
        """A streaming call."""
        return self.new_call(STREAM, **changes)

    def cancel(self, call: Call) -> None:
        """As a delivery: note it and end the call."""
        assert threading.get_ident() == self._thread.ident
        self.cancelled.append(call)
        if not self.is_deaf:
            call.end(Raised(Cancelled()))

    def grant(self, items: int, bytes_: int) -> None:
        """As a delivery: note it."""
        assert threading.get_ident() == self._thread.ident
        self.grants.append((items, bytes_))
