"""What a program may notice when its calls change their transport, and why."""

from __future__ import annotations

import asyncio
import sys

import grpc
import numpy as np
import pandas as pd
import pydantic
import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

import serve_grpc
from serve_grpc import errors
from tests.ray.apps.differing import Differing, OverQuota, is_writable
from tests.ray.apps.gated import Board
from tests.ray.compat.behaviours import BY_REFERENCE, OURS, SERVES_GRPC, difference
from tests.ray.needs import needs_ray
from tests.ray.waiting import eventually, eventually_async

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 1,
}
PATIENCE_S = 30
WINDOW_ITEMS = 256
"""Default of `SERVE_GRPC_STREAM_WINDOW_ITEMS`."""


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    for name in ("first", "second", "all"):
        board.release(name)


@pytest.fixture(scope="module")
def differing(deploy):
    app = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=100)(Differing).bind()
    deploy(app, "differing")
    return serve_grpc.get_app_handle("differing")


@pytest.fixture
def handle(transport, differing):
    return transport.over(differing)


@pytest.fixture
def own_handle(transport, deploy):
    """Deploys with these options, for this test and transport alone."""

    def own_handle(name, **options):
        name = f"{name}-{transport.name.replace(' ', '-')}"
        deploy(serve_grpc.deployment(**OPTIONS, **options)(Differing).bind(), name)
        return transport.over(serve_grpc.get_app_handle(name))

    return own_handle


def error_of(response, timeout_s=PATIENCE_S):
    """What the call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its type is what the tests look at)
        response.result(timeout_s=timeout_s)
    return caught.value


# ------------------------------------------------------------ values


@difference(
    "A contiguous array of numbers, or a frame of them, may be written to where it arrives",
    by_reference="no: it is a view of Ray's object store (arrays of dates, and strided ones, may)",
    serves_grpc="yes",
    ours="yes",
    why="each receiver has a copy of its own",
)
@pytest.mark.parametrize(
    "value", [np.arange(100_000), np.arange(3), pd.DataFrame({"a": np.arange(1000.0)})]
)
def test_arrays_may_be_written_to(transport, handle, value):
    expected = transport.name != BY_REFERENCE
    assert handle.is_writable.remote(value).result(timeout_s=PATIENCE_S) is expected
    assert is_writable(handle.echo.remote(value).result(timeout_s=PATIENCE_S)) is expected


@difference(
    "A `bytearray` arrives as",
    by_reference="`bytes`",
    serves_grpc="`bytearray`",
    ours="`bytearray`",
    why="pickle keeps the type, Ray's object store does not; a `memoryview` arrives as `bytes` "
    "over every transport",
)
def test_bytearrays(transport, handle):
    expected = "bytes" if transport.name == BY_REFERENCE else "bytearray"
    assert handle.kind.remote(bytearray(b"x")).result(timeout_s=PATIENCE_S) == expected
    assert handle.kind.remote(memoryview(b"x")).result(timeout_s=PATIENCE_S) == "bytes"
    result = handle.echo.remote(bytearray(b"x")).result(timeout_s=PATIENCE_S)
    assert type(result).__name__ == expected


@difference(
    "A request or result over 4 MiB (`RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH`)",
    by_reference="passes",
    serves_grpc="fails with an error of gRPC",
    ours="fails with `MessageTooLargeError`, a `ValueError`",
    why="one call must not fill a process's memory, nor delay the others",
)
@pytest.mark.parametrize("method", ["length", "blob"])
def test_large_values(transport, handle, method):
    value = b"x" * 5_000_000
    response = getattr(handle, method).remote(value if method == "length" else len(value))
    if transport.name == BY_REFERENCE:
        assert response.result(timeout_s=PATIENCE_S) in (value, len(value))
    else:
        is_ours = transport.name == OURS
        expected = errors.MessageTooLargeError if is_ours else grpc.aio.AioRpcError
        assert type(error_of(response)) is expected


@difference(
    "An argument that cannot be serialized",
    by_reference="raises `TypeError` where the response is awaited",
    serves_grpc="the same",
    ours="raises `SerializationError`, which is a `TypeError`, in the same place",
    why="the error names the serializer, the type, and a serializer that takes it",
)
def test_arguments_that_cannot_be_serialized(transport, handle):
    error = error_of(handle.echo.remote(sys._getframe()))
    assert isinstance(error, TypeError)
    assert isinstance(error, errors.SerializationError) is (transport.name == OURS)


@difference(
    "A generator, or the response generator of another call, as an argument",
    by_reference="`TypeError` at `remote()`, which says so",
    serves_grpc="fails: `TypeError` for a generator, `RuntimeError` for a response generator",
    ours="[the handler gets a stream](request-streams.md), item by item, with flow control",
    why="speech, tokens and documents in parts are made while they are worked on",
)
@pytest.mark.parametrize("kind", ["generator", "response generator"])
def test_generators_as_arguments(transport, handle, board, kind):
    if kind == "generator":
        stream = (number for number in range(4))
    else:
        stream = handle.options(stream=True).items.remote(board.path, 4)
    if transport.name == OURS:
        assert handle.total.remote(stream).result(timeout_s=PATIENCE_S) == 6
        return
    is_refused_by_serve = transport.name == SERVES_GRPC and kind == "response generator"
    with pytest.raises(RuntimeError if is_refused_by_serve else TypeError):
        handle.total.remote(stream).result(timeout_s=PATIENCE_S)


# ------------------------------------------------------------ waiting and giving up


@difference(
    "`asyncio.wait_for(response, ...)` gives up",
    by_reference="the handler runs on; the response can be awaited again",
    serves_grpc="the handler is cancelled",
    ours="the handler is cancelled; the response raises `RequestCancelledError` from then on",
    why="nobody waits for the call any more; it is as if a task were cancelled",
)
def test_wait_for(transport, handle, board):
    async def give_up_and_wait_again():
        response = handle.hold.remote(board.path, "first")
        await eventually_async(lambda: board.count("start"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response, 0.1)
        if transport.name != BY_REFERENCE:
            await eventually_async(lambda: board.count("cancelled"))
        board.release()
        try:
            await response
        except (RequestCancelledError, asyncio.CancelledError) as error:
            return type(error)
        return None

    expected = {
        BY_REFERENCE: None,
        SERVES_GRPC: asyncio.CancelledError,
        OURS: RequestCancelledError,
    }
    assert asyncio.run(give_up_and_wait_again()) is expected[transport.name]
    assert board.count("end") == (transport.name == BY_REFERENCE)


@needs_ray("2.60", "by reference, `result` waits in Ray's `get`")
@difference(
    "`response.result(timeout_s=...)` gives up",
    by_reference="`GetTimeoutError`, a `TimeoutError`",
    serves_grpc="`TimeoutError`",
    ours="`TimeoutError`",
    why="the result is no object in Ray's store, so Ray's `get` is not involved",
)
def test_timeouts_of_result(transport, handle, board):
    response = handle.hold.remote(board.path, "first")
    eventually(lambda: board.count("start"))
    error = error_of(response, timeout_s=0.1)
    assert type(error) is (GetTimeoutError if transport.name == BY_REFERENCE else TimeoutError)
    assert isinstance(error, TimeoutError)


@difference(
    "A stream is let go before its end (`break`, and then nothing refers to it)",
    by_reference="the generator runs on",
    serves_grpc="the generator runs on",
    ours="the generator is closed",
    why="nobody can read its items any more",
)
def test_streams_that_are_let_go(transport, handle, board):
    async def let_go():
        stream = handle.options(stream=True).stream.remote(board.path, "first")
        async for number in stream:
            if number == 3:
                break
        del stream
        made = board.count("item")
        await eventually_async(lambda: board.count("closed") or board.count("item") > made + 100)
        return board.count("closed")

    assert asyncio.run(let_go()) == (transport.name == OURS)


@difference(
    "A consumer takes one item of a stream and waits",
    by_reference="the generator runs to its end, and its items wait in memory",
    serves_grpc="the same",
    ours="the generator pauses after `SERVE_GRPC_STREAM_WINDOW_ITEMS` (256) items, or 1 MiB",
    why="a slow consumer must not fill the memory of either process",
)
def test_streams_that_are_not_consumed(transport, handle, board):
    number = 2000
    items = iter(handle.options(stream=True).items.remote(board.path, number))
    assert next(items) == 0
    expected = WINDOW_ITEMS + 1 if transport.name == OURS else number
    eventually(lambda: board.count("item") >= expected)
    assert handle.echo.remote("later").result(timeout_s=PATIENCE_S) == "later"
    assert board.count("item") == expected
    assert list(items) == list(range(1, number))


@needs_ray("2.60", "Serve runs `def` code in its thread pool by default")
@difference(
    "A `def` handler whose call was cancelled",
    by_reference="gives its slot back at once, so more threads than `max_ongoing_requests` run",
    serves_grpc="the same",
    ours="keeps its slot until its code has ended; its caller is told at once",
    why="a thread cannot be stopped, and `max_ongoing_requests` must hold",
)
def test_slots_of_cancelled_threads(transport, own_handle, board):
    handle = own_handle("one-slot", max_ongoing_requests=1)
    first = handle.block.remote(board.path, "first")
    eventually(lambda: board.count("start", "first"))
    first.cancel()
    assert isinstance(error_of(first), RequestCancelledError)
    second = handle.block.remote(board.path, "second")
    if transport.name == OURS:
        with pytest.raises(TimeoutError):
            second.result(timeout_s=1)
        assert not board.count("start", "second")
        board.release("first")
    eventually(lambda: board.count("start", "second"))
    board.release("first")
    board.release("second")
    second.result(timeout_s=PATIENCE_S)


@difference(
    "50 calls at once to an idle replica with 100 slots and `max_queued_requests=5`",
    by_reference="some are refused: each call counts as queued until it is sent",
    serves_grpc="some are refused",
    ours="all are sent: only a call that finds no free slot counts as queued",
    why="the limit is for calls that wait",
)
def test_bursts(transport, own_handle):
    handle = own_handle("burst", max_ongoing_requests=100, max_queued_requests=5)
    assert handle.echo.remote("first").result(timeout_s=PATIENCE_S) == "first"

    async def burst():
        responses = [handle.echo.remote("x") for _ in range(50)]
        return await asyncio.gather(*responses, return_exceptions=True)

    outcomes = asyncio.run(burst())
    refused = [outcome for outcome in outcomes if isinstance(outcome, BackPressureError)]
    assert (len(refused) > 0) is (transport.name != OURS)
    assert [o for o in outcomes if o not in refused] == ["x"] * (50 - len(refused))


# ------------------------------------------------------------ errors


@difference(
    "Attributes of the user's exception with a default, such as `errno` or a dataclass's fields",
    by_reference="are on `error.cause`; the error that is caught has the defaults",
    serves_grpc="are on the error that is caught; there is no remote traceback",
    ours="are on `error.cause`; the error that is caught has the defaults",
    why="as by reference, the error is Ray's own `RayTaskError`, with the remote traceback",
)
def test_attributes_of_exceptions(transport, handle):
    missing = error_of(handle.raise_os_error.remote())
    over_quota = error_of(handle.raise_quota.remote())
    assert isinstance(missing, FileNotFoundError)
    assert isinstance(over_quota, OverQuota)
    if transport.name == SERVES_GRPC:
        assert (missing.errno, over_quota.used) == (2, 107)
        return
    assert isinstance(missing, RayTaskError)
    assert isinstance(over_quota, RayTaskError)
    assert (missing.errno, missing.cause.errno) == (None, 2)
    assert (over_quota.used, over_quota.cause.used) == (0, 107)


@difference(
    "An exception of a class that cannot be subclassed, such as pydantic's `ValidationError`",
    by_reference="is not caught by its type; it is `error.cause`",
    serves_grpc="is caught by its type",
    ours="is not caught by its type; it is `error.cause`",
    why="a `RayTaskError` that is also of that type would have to be a subclass of it",
)
def test_exceptions_of_final_classes(transport, handle):
    error = error_of(handle.raise_validation_error.remote())
    is_serve_routed = transport.name == SERVES_GRPC
    assert isinstance(error, pydantic.ValidationError) is is_serve_routed
    assert (error if is_serve_routed else error.cause).errors()[0]["loc"] == ("x",)


@difference(
    "A `ValueError` that cannot be pickled arrives as",
    by_reference="a `RayTaskError` with its text",
    serves_grpc="an error of gRPC",
    ours="a `RayTaskError` with its text, which is also a `ValueError`",
    why="the caller is told what is known of the error",
)
def test_exceptions_that_cannot_be_pickled(transport, handle):
    error = error_of(handle.raise_with_a_lock.remote())
    assert isinstance(error, grpc.aio.AioRpcError) is (transport.name == SERVES_GRPC)
    assert isinstance(error, RayTaskError) is (transport.name != SERVES_GRPC)
    assert isinstance(error, ValueError) is (transport.name == OURS)
    assert ("holds a lock" in str(error)) is (transport.name != SERVES_GRPC)


@difference(
    "An exception that can be pickled, but not built again, arrives as",
    by_reference="an error of Ray's that is not a `RayTaskError`",
    serves_grpc="the `TypeError` that is raised when it is built again",
    ours="a `RayTaskError` with its text and traceback",
    why="the caller is told what is known of the error",
)
def test_exceptions_that_cannot_be_built_again(transport, handle):
    error = error_of(handle.raise_two_numbers.remote())
    assert isinstance(error, RayTaskError) is (transport.name == OURS)
    assert isinstance(error, TypeError) is (transport.name == SERVES_GRPC)
    assert isinstance(error, RayError) is (transport.name != SERVES_GRPC)
    assert "TwoNumbers" in str(error)


@difference(
    "The replica dies while the call runs",
    by_reference="`ActorDiedError`, a `RayActorError`",
    serves_grpc="`ActorUnavailableError`, a `RayActorError`",
    ours="`ReplicaDiedError`, a `RayActorError`, which says whether the call may have run",
    why="a caller that wants to repeat the call has to know",
)
def test_replicas_that_die(transport, own_handle):
    error = error_of(own_handle("dying").die.remote())
    expected = {
        BY_REFERENCE: ray.exceptions.ActorDiedError,
        SERVES_GRPC: ray.exceptions.ActorUnavailableError,
        OURS: errors.ReplicaDiedError,
    }
    assert type(error) is expected[transport.name]
    assert isinstance(error, RayActorError)
    assert getattr(error, "may_have_executed", None) is (True if transport.name == OURS else None)
