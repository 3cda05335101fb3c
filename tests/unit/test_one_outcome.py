"""Whatever a request's code raises, and whatever fails on its way out: one answer, and a free slot.

The dispatcher, the executor and Serve's slots are real; requests come through the plain door.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bench.stand_ins.serve import cancel_tasks, new_replica_adapter
from serve_grpc._generated.replica_pb2 import CallRequest, Error
from serve_grpc._serve import replicas, tracing
from serve_grpc._serve.replicas import ReplicaAdapter, UserMethod
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.config import Settings
from serve_grpc.replica import dispatcher as dispatcher_module
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.replica.replies import PlainReplies
from serve_grpc.serialization import get_serializer
from tests.ray.waiting import eventually_async

PATIENCE_S = 20
DUMPS = get_serializer("pickle")
ARGUMENTS = DUMPS.dump_request((), {})


class NoText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text for you")

    __repr__ = __str__


class TextThatLeaves(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class _Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise LookupError(name)
        return super().__getattribute__(name)


class OddClass(Exception, metaclass=_Nameless):
    pass


class NoNotes(Exception):
    @property
    def __notes__(self) -> Any:
        raise KeyboardInterrupt


class LeavesWhenPickled(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(4)


class TwoFaced(Exception):
    @property
    def __class__(self) -> Any:
        raise TextThatLeaves

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise AssertionError("nobody sets it")


KINDS: tuple[type[BaseException], ...] = (
    ValueError, NoText, TextThatLeaves, OddClass, NoNotes, LeavesWhenPickled, TwoFaced, SystemExit,
    KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration, asyncio.CancelledError,
)  # fmt: skip
NAMES = [type.__repr__(kind) for kind in KINDS]  # not all of them can be asked


class Broken:
    """A scope whose method of one name raises."""

    def __init__(self, name: str, error: type[BaseException]) -> None:
        self._name = name
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> None:
            if name == self._name:
                raise self._error

        return call


def run(
    handler: Callable[..., Any],
    test: Callable[[ReplicaAdapter, ReplicaDispatcher], Awaitable[None]],
) -> None:
    async def fine() -> str:
        return "fine"

    async def main() -> None:
        adapter = new_replica_adapter(fine, max_ongoing_requests=1)
        is_coroutine = inspect.iscoroutinefunction(handler)
        adapter._methods["handler"] = UserMethod("handler", handler, is_coroutine, not is_coroutine)
        try:
            await test(adapter, ReplicaDispatcher(adapter, Settings()))
        finally:
            await cancel_tasks()
            adapter._access_log.close()

    asyncio.run(main())


def call(dispatcher: ReplicaDispatcher, method: str, *, is_stream: bool = False) -> PlainCall:
    request = CallRequest(method=method, request_serializer="pickle", payload=ARGUMENTS)
    one = PlainCall(request, is_stream=is_stream, timeout_s=None, trace={})
    dispatcher.on_plain_call(one)
    return one


async def answer(one: PlainCall) -> Any:
    return await asyncio.wait_for(one.next(), PATIENCE_S)


async def assert_at_peace(dispatcher: ReplicaDispatcher, requests: int) -> None:
    """Each request was counted once, and the only slot is free."""
    await eventually_async(lambda: dispatcher.ongoing() == 0)
    assert sum(dispatcher.outcomes.values()) == requests
    assert DUMPS.load_response(await answer(call(dispatcher, "fine"))) == "fine"


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("in_thread", [False, True])
def test_every_exception_is_told_as_an_error(kind: type[BaseException], in_thread: bool) -> None:
    def in_thread_() -> None:
        raise kind

    async def on_loop() -> None:
        raise kind

    async def test(_: ReplicaAdapter, dispatcher: ReplicaDispatcher) -> None:
        error = await answer(call(dispatcher, "handler"))
        assert isinstance(error, Error)
        assert error.may_have_executed
        await assert_at_peace(dispatcher, 1)

    run(in_thread_ if in_thread else on_loop, test)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_every_exception_ends_a_stream_with_an_error(kind: type[BaseException]) -> None:
    def items() -> Any:
        yield 1
        raise kind

    async def test(_: ReplicaAdapter, dispatcher: ReplicaDispatcher) -> None:
        one = call(dispatcher, "handler", is_stream=True)
        assert DUMPS.load_response(await answer(one)) == 1
        assert isinstance(await answer(one), Error)
        await assert_at_peace(dispatcher, 1)

    run(items, test)


@pytest.mark.parametrize("error", [ValueError, NoText, TextThatLeaves, SystemExit])
@pytest.mark.parametrize(
    ("step", "raises"),
    [("record_exception", True), ("end", True), ("end", False)],
)
def test_a_span_that_fails_fails_nothing_else(
    monkeypatch: pytest.MonkeyPatch, step: str, raises: bool, error: type[BaseException]
) -> None:
    class Manager:
        def __init__(self, **_: Any) -> None:
            self.span = Broken(step, error)

        def __enter__(self) -> None:
            """Nothing to do."""

        def __exit__(self, *_: object) -> None:
            self.span.end()

    async def handler() -> str:
        if raises:
            raise NoText
        return "a result"

    async def test(_: ReplicaAdapter, dispatcher: ReplicaDispatcher) -> None:
        dispatcher._is_tracing = True
        monkeypatch.setattr(tracing.tracing_utils, "TraceContextManager", Manager)
        monkeypatch.setattr(tracing.tracing_utils, "is_tracing_enabled", lambda: True)
        monkeypatch.setattr(
            tracing.tracing_utils, "extract_propagated_context", lambda context: context
        )
        assert isinstance(await answer(call(dispatcher, "handler")), Error if raises else bytes)
        await assert_at_peace(dispatcher, 1)

    run(handler, test)


@pytest.mark.parametrize("error", [ValueError, TextThatLeaves, SystemExit])
def test_a_scope_that_cannot_be_entered_fails_its_call(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    async def test(_: ReplicaAdapter, dispatcher: ReplicaDispatcher) -> None:
        dispatcher._is_tracing = True
        monkeypatch.setattr(dispatcher_module, "Scope", lambda _: Broken("enter", error))
        assert isinstance(await answer(call(dispatcher, "handler")), Error)
        monkeypatch.undo()
        await assert_at_peace(dispatcher, 1)

    run(never, test)


@pytest.mark.parametrize("where", ["metrics", "access log", "slot", "replies"])
@pytest.mark.parametrize("raises", [False, True])
def test_a_step_of_the_end_that_fails_leaves_out_no_other(
    monkeypatch: pytest.MonkeyPatch, where: str, raises: bool
) -> None:
    async def handler() -> str:
        if raises:
            raise NoText
        return "a result"

    failures: list[str] = []

    def fail(*_: object, **__: object) -> None:
        failures.append("this step is broken")
        raise ValueError(failures[-1])

    async def test(adapter: ReplicaAdapter, dispatcher: ReplicaDispatcher) -> None:
        owner, name = {
            "metrics": (adapter._request_metrics, "add"),
            "access log": (adapter._access_log, "add"),
            "slot": (adapter._metrics, "dec_num_ongoing_requests"),
            "replies": (PlainReplies, "finish"),
        }[where]
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            one = call(dispatcher, "handler")
            if where != "replies":
                assert isinstance(await answer(one), Error if raises else bytes)
            await eventually_async(lambda: sum(dispatcher.outcomes.values()) == 1)
        assert failures == ["this step is broken"]
        if where == "slot":
            adapter._metrics.dec_num_ongoing_requests(replicas._METADATA)
        await assert_at_peace(dispatcher, 1)

    run(handler, test)
