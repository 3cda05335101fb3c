"""A replica whose calls have streams among their arguments, and its caller.

Both session machines, the dispatcher, the executor and Serve's semaphore are real; only the carrier
is played.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from bench.stand_ins.serve import new_replica_adapter
from serve_grpc._serve.exceptions import message_from_exception
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import CallEventKind
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind, InputNews
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.replica.invocation import CancelReason, Invocation
from serve_grpc.request_stream import RequestStream
from serve_grpc.serialization import get_serializer
from serve_grpc.streams.inbox import Inbox
from tests.ray.waiting import eventually_async
from tests.unit.sessions import STREAM, UNARY, fields, open_pair
from tests.unit.test_dispatcher import Line

__all__ = [
    "FIRST",
    "KINDS",
    "PICKLE",
    "WINDOW",
    "Caller",
    "Replica",
    "Run",
    "generated",
    "generated_in_thread",
    "kept_objects",
    "listed",
    "listed_in_thread",
]

PICKLE = get_serializer("pickle")
WINDOW = (4, 100_000)
FIRST = (InputPlace(0, ""),)


class Caller(Line):
    """A caller's session, whose calls have inputs. Items are sent by hand, within the credit."""

    def __init__(self, dispatcher: ReplicaDispatcher) -> None:
        super().__init__(dispatcher)
        self.caller, self.session = open_pair(input_credit=WINDOW)

    def call(
        self,
        *args: Any,
        inputs: tuple[InputPlace, ...] = FIRST,
        is_stream: bool = False,
        serializer: str = "pickle",
        kwargs: dict[str, Any] | None = None,
        **changes: Any,
    ) -> int:
        """Send a request that is named "call", and its inputs."""
        envelope = (STREAM if is_stream else UNARY)._replace(
            request_serializer=serializer, response_serializer="pickle"
        )
        payload = b"" if serializer == "noop" else PICKLE.dump_request(args, kwargs or {})
        request: dict[str, Any] = {"inputs": inputs, "envelope": envelope, **changes}
        (call_id,) = self.send("call", payload=payload, **request)
        return call_id

    def send(self, *names: str, payload: bytes = b"", **changes: Any) -> list[int]:
        """As of `Line`, with a payload."""
        ids = [
            self.caller.request(name, fields(payload, **{"request_id": name, **changes}))
            for name in names
        ]
        self.say()
        return ids

    def item(self, call_id: int, *values: Any, number: int = 0) -> None:
        """So many items, in one message."""
        for value in values:
            self.caller.inputs.add(call_id, number, InputKind.ITEM, PICKLE.dump_item(value))
        self.say()

    def end(self, call_id: int, number: int = 0) -> None:
        self.caller.inputs.add(call_id, number, InputKind.END)
        self.say()

    def fail(self, call_id: int, error: Exception) -> None:
        message = message_from_exception(error, "generator", may_pickle=True, refs=[])
        self.caller.inputs.add(call_id, 0, InputKind.ERROR, b"", message)
        self.say()

    @property
    def news(self) -> list[InputNews]:
        return [news for received in self.heard for news in received.inputs]

    @property
    def is_closed(self) -> bool:
        return any(news.is_closed for news in self.news)

    @property
    def values(self) -> list[Any]:
        """Of results and items, in order."""
        kinds = (CallEventKind.RESULT, CallEventKind.ITEM)
        events = [event for received in self.heard for event in received.events]
        return [PICKLE.load_response(e.payload) for e in events if e.kind in kinds]

    @property
    def ends(self) -> int:
        """How many calls have ended, well or not."""
        kinds = (CallEventKind.RESULT, CallEventKind.END, CallEventKind.ERROR)
        return sum(e.kind in kinds for received in self.heard for e in received.events)


class Replica:
    """A replica whose one method is `code`.

    Args:
        code: Of any kind.
        user_loop: Where it runs; None for the running loop.
        changes: Of its settings.
    """

    def __init__(
        self, code: Callable[..., Any], user_loop: asyncio.AbstractEventLoop | None, slots: int = 1
    ) -> None:
        self.adapter = new_replica_adapter(code, max_ongoing_requests=slots)
        if user_loop is not None:
            self.adapter.user_loop = user_loop
        settings = dataclasses.replace(
            Settings(), stream_window_items=WINDOW[0], stream_window_bytes=WINDOW[1]
        )
        self.dispatcher = ReplicaDispatcher(self.adapter, settings)
        self.caller = Caller(self.dispatcher)

    @property
    def running(self) -> dict[int, Invocation]:
        """What runs, or stands by, for the caller."""
        stream: Any = self.caller
        return self.dispatcher._replies[stream].running

    def expire(self, call_id: int) -> None:
        """The deadline of a call passes."""
        cancel = self.dispatcher._executor.cancel
        self.dispatcher._to_user.run(cancel, self.running[call_id], CancelReason.DEADLINE)

    async def idle(self) -> None:
        """Return when all slots are free again, and nothing is left."""
        await eventually_async(lambda: self.dispatcher.ongoing() == 0)
        assert "0 running" in repr(self.dispatcher)


Run = Callable[..., None]


async def listed(items: RequestStream) -> list[Any]:
    return [item async for item in items]


async def generated(items: RequestStream) -> AsyncIterator[Any]:
    async for item in items:
        yield item


def listed_in_thread(items: RequestStream) -> list[Any]:
    assert threading.current_thread() is not threading.main_thread()
    return list(items)


def generated_in_thread(items: RequestStream) -> Iterator[Any]:
    yield from items


KINDS = pytest.mark.parametrize(
    "code", [listed, generated, listed_in_thread, generated_in_thread], ids=lambda f: f.__name__
)


def kept_objects() -> int:
    """How many requests and inputs there are in this process."""
    gc.collect()
    return sum(type(each) in (Invocation, Inbox) for each in gc.get_objects())
