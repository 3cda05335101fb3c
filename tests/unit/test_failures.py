"""Whose error it is that a request ended with: ours about this very request, or the user's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error, RequestContext
from serve_grpc._serve.tracing import Scope
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    SerializationError,
    ServeGrpcError,
)
from serve_grpc.replica.executor import Executor
from tests.ray.waiting import eventually_async
from tests.unit.test_executor import OneMethod, Outcomes, invocation

LIMIT = 1000


class Refused(ServeGrpcError):
    """A user's class in our tree."""


class NoPickle:
    def __reduce__(self) -> Any:
        raise MessageTooLargeError(1, 2, "request")


def error_of(handler: Callable[..., Any], **fields: Any) -> Error:
    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(handler)
        Executor(replica, outcomes, LIMIT).submit([invocation(1, **fields)])
        await eventually_async(lambda: outcomes.by_id)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is not None
    return outcome.error


ERRORS = [
    Refused("sold out"),
    ServeGrpcError("mine"),
    DeadlineExceededError("the index is slow"),
    DeadlineExceededError("of a call of its own", request_id="another"),
    MessageTooLargeError(5, 4, "response"),
    SerializationError("mine", serializer="noop", direction="request"),
    ReplicaDiedError("mine"),
    ReplicaUnavailableError("mine"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
def test_an_error_that_the_handler_raises_is_the_users(
    error: ServeGrpcError, is_stream: bool, in_thread: bool
) -> None:
    async def on_loop() -> None:
        raise error

    def in_a_thread() -> None:
        raise error

    told = error_of(in_a_thread if in_thread else on_loop, is_stream=is_stream)
    assert told.code == Error.USER_EXCEPTION
    assert told.type_name == f"{type(error).__module__}.{type(error).__qualname__}"
    assert told.message == str(error)
    assert told.pickled
    assert "raise error" in told.traceback


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("value", "code"),
    [(b"x" * LIMIT, Error.MESSAGE_TOO_LARGE), (NoPickle(), Error.SERIALIZATION)],
)
def test_what_is_wrong_with_a_result_or_an_item_is_ours(
    value: Any, code: int, is_stream: bool, in_thread: bool
) -> None:
    def items() -> Any:
        yield value

    async def items_on_loop() -> Any:
        yield value

    def unary() -> Any:
        return value

    async def unary_on_loop() -> Any:
        return value

    handlers = {
        (True, True): items,
        (True, False): items_on_loop,
        (False, True): unary,
        (False, False): unary_on_loop,
    }
    told = error_of(handlers[is_stream, in_thread], is_stream=is_stream, credit=(9, LIMIT))
    assert (told.code, told.direction) == (code, "response")
    assert (told.pickled, told.may_have_executed) == (b"", True)


def test_a_span_records_what_is_wrong_with_a_result() -> None:
    recorded: list[BaseException] = []

    class Span(Scope):
        def enter(self, fields: Any, **_: object) -> None:
            """It is open."""

        def fail(self, error: BaseException) -> None:
            recorded.append(error)

    async def large() -> bytes:
        return b"x" * LIMIT

    error_of(large, scope=Span(RequestContext()))
    assert [type(error) for error in recorded] == [MessageTooLargeError]


def test_a_task_that_others_cancel_leaves_no_thread_behind() -> None:
    is_out = threading.Event()

    def endless() -> Any:
        try:
            while True:
                yield 1
                for task in asyncio.all_tasks(loop):
                    if "Executor._run" in repr(task.get_coro()):
                        loop.call_soon_threadsafe(task.cancel)
        finally:
            is_out.set()

    async def run() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        outcomes = Outcomes()
        replica: Any = OneMethod(endless)
        one = invocation(1, is_stream=True, credit=(2, LIMIT))
        Executor(replica, outcomes, LIMIT).submit([one])
        await eventually_async(is_out.is_set)
        await eventually_async(lambda: outcomes.by_id)

    loop: Any = None
    asyncio.run(run())
    assert is_out.is_set()


def test_arguments_that_cannot_be_read_are_ours() -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    told = error_of(never, payload=b"no pickle")
    assert (told.code, told.direction) == (Error.SERIALIZATION, "request")
    assert not told.may_have_executed


def test_a_deadline_that_passed_before_the_start_is_ours() -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    told = error_of(never, deadline_s=time.monotonic() - 1)
    assert (told.code, told.may_have_executed) == (Error.DEADLINE_EXCEEDED, False)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_stop_of_async_iteration_is_a_runtime_error(is_stream: bool, in_thread: bool) -> None:
    async def on_loop() -> None:
        raise StopAsyncIteration

    def in_a_thread() -> None:
        raise StopAsyncIteration

    told = error_of(in_a_thread if in_thread else on_loop, is_stream=is_stream)
    assert told.code == Error.USER_EXCEPTION
    assert told.type_name == "builtins.RuntimeError"
    assert told.message == "async generator raised StopAsyncIteration"
    assert "raise StopAsyncIteration" in told.traceback
