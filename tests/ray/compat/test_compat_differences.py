"""What a program may notice when its calls change their transport, and why."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

import serve_grpc
from serve_grpc import errors
from tests.ray.apps.differing import Differing
from tests.ray.apps.gated import Board
from tests.ray.compat.behaviours import BY_REFERENCE, OURS, SERVES_GRPC, difference
from tests.ray.waiting import eventually

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
}
WINDOW_ITEMS = 256
"""Default of `SERVE_GRPC_STREAM_WINDOW_ITEMS`."""


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


@pytest.fixture(scope="module")
def differing(deploy):
    app = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=100)(Differing).bind()
    deploy(app, "differing")
    return serve_grpc.get_app_handle("differing")


def error_of(response):
    """What the call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its type is what the tests look at)
        response.result(timeout_s=30)
    return caught.value


# ------------------------------------------------------------ values


@difference(
    "A NumPy array, as an argument or a result, may be written to",
    by_reference="no, it lies in Ray's object store",
    serves_grpc="yes",
    ours="yes",
    why="each receiver has a copy of its own",
)
def test_arrays_may_be_written_to(transport, differing):
    handle, array = transport.over(differing), np.arange(1000)
    expected = transport.name != BY_REFERENCE
    assert handle.is_writable.remote(array).result(timeout_s=30) is expected
    assert handle.echo.remote(array).result(timeout_s=30).flags.writeable is expected


@difference(
    "A `bytearray` arrives as",
    by_reference="`bytes`",
    serves_grpc="`bytearray`",
    ours="`bytearray`",
    why="pickle keeps it, Ray's object store does not; a `memoryview` is `bytes` everywhere",
)
def test_bytearrays(transport, differing):
    kinds = transport.over(differing).kinds.remote(bytearray(b"x"), memoryview(b"x"))
    of_bytearray = "bytes" if transport.name == BY_REFERENCE else "bytearray"
    assert kinds.result(timeout_s=30) == [of_bytearray, "bytes"]


@difference(
    "A request or result over 4 MiB (`RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH`)",
    by_reference="passes",
    serves_grpc="fails with an error of gRPC",
    ours="fails with `MessageTooLargeError`, a `ValueError`",
    why="one call must not fill a replica's memory, nor hold up the others",
)
def test_large_values(transport, differing):
    response = transport.over(differing).echo.remote(b"x" * 5_000_000)
    if transport.name == BY_REFERENCE:
        assert len(response.result(timeout_s=30)) == 5_000_000
        return
    error = error_of(response)
    assert isinstance(error, errors.MessageTooLargeError) is (transport.name == OURS)
    assert "larger than max" in str(error) or "over the limit of 4194304" in str(error)


@difference(
    "An argument that cannot be serialized",
    by_reference="raises `TypeError` where the response is awaited",
    serves_grpc="the same",
    ours="raises `SerializationError`, a `TypeError`, there",
    why="it names the serializer, the type, and what would take it",
)
def test_arguments_that_cannot_be_serialized(transport, differing):
    error = error_of(transport.over(differing).echo.remote(threading.Lock()))
    assert isinstance(error, TypeError)
    assert isinstance(error, errors.SerializationError) is (transport.name == OURS)


# ------------------------------------------------------------ waiting and giving up


@difference(
    "`asyncio.wait_for(response, ...)` gives up",
    by_reference="the handler runs on; the response can be awaited again",
    serves_grpc="the handler is cancelled",
    ours="the handler is cancelled; the response raises `RequestCancelledError` from then on",
    why="nobody waits any more, as when any other task is cancelled",
)
def test_wait_for(transport, differing, board):
    async def give_up_and_wait_again() -> object:
        response = transport.over(differing).wait.remote(board.path, "a")
        started = asyncio.create_task(asyncio.to_thread(eventually, lambda: board.count("start")))
        await started
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response, 0.1)
        if transport.name != BY_REFERENCE:
            await asyncio.to_thread(eventually, lambda: board.count("cancelled"))
        board.release()
        try:
            return await response
        except RequestCancelledError as error:
            return type(error)
        except asyncio.CancelledError as error:
            return type(error)

    result = asyncio.run(give_up_and_wait_again())
    expected = {
        BY_REFERENCE: "a",
        SERVES_GRPC: asyncio.CancelledError,
        OURS: RequestCancelledError,
    }
    assert result == expected[transport.name]


@difference(
    "A `def` handler whose call was cancelled",
    by_reference="gives its slot back at once: more threads run than `max_ongoing_requests`",
    serves_grpc="the same",
    ours="keeps its slot until the thread is out; its caller is told at once",
    why="`max_ongoing_requests` holds: a thread cannot be stopped",
)
def test_slots_of_cancelled_threads(transport, deploy, board):
    name = f"one-slot-{transport.name.replace(' ', '-')}"
    app = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=1)(Differing).bind()
    deploy(app, name)
    handle = transport.over(serve_grpc.get_app_handle(name))
    first = handle.wait_in_thread.remote(board.path, "first")
    eventually(lambda: board.count("start") == 1)
    first.cancel()
    assert isinstance(error_of(first), RequestCancelledError)
    second = handle.wait_in_thread.remote(board.path, "second")
    if transport.name == OURS:
        with pytest.raises(TimeoutError):
            second.result(timeout_s=1)
        assert board.count("start") == 1
    else:
        eventually(lambda: board.count("start") == 2)
    board.release("first")
    board.release("second")
    assert second.result(timeout_s=30) == "second"


@difference(
    "A consumer takes one item of a stream and waits",
    by_reference="the generator runs to its end, its items wait in memory",
    serves_grpc="the same",
    ours="the generator pauses after `SERVE_GRPC_STREAM_WINDOW_ITEMS` (256) items, or 1 MiB",
    why="a slow consumer must not fill the memory of either process",
)
def test_streams_that_are_not_consumed(transport, differing, board):
    handle = transport.over(differing)
    number = 2000
    items = iter(handle.options(stream=True).items.remote(board.path, number))
    assert next(items) == 0
    expected = WINDOW_ITEMS + 1 if transport.name == OURS else number
    eventually(lambda: board.count("item") >= expected)
    assert handle.echo.remote("later").result(timeout_s=30) == "later"
    assert board.count("item") == expected
    assert list(items) == list(range(1, number))


@difference(
    "50 calls at once to an idle replica with 100 slots and `max_queued_requests=5`",
    by_reference="some are refused: each counts as queued until it was sent",
    serves_grpc="some are refused",
    ours="all are sent: only a call that finds no slot waits",
    why="the limit is for calls that wait",
)
def test_bursts(transport, deploy, board):
    name = f"burst-{transport.name.replace(' ', '-')}"
    app = serve_grpc.deployment(**OPTIONS, max_ongoing_requests=100, max_queued_requests=5)
    deploy(app(Differing).bind(), name)
    handle = transport.over(serve_grpc.get_app_handle(name))
    assert handle.echo.remote(1).result(timeout_s=30) == 1

    async def burst() -> list[object]:
        responses = [handle.wait.remote(board.path, "x") for _ in range(50)]
        board.release()
        return await asyncio.gather(*responses, return_exceptions=True)

    outcomes = asyncio.run(burst())
    refused = [o for o in outcomes if isinstance(o, BackPressureError)]
    assert (len(refused) > 0) is (transport.name != OURS)
    assert [o for o in outcomes if o not in refused] == ["x"] * (50 - len(refused))


# ------------------------------------------------------------ errors


@difference(
    "The attributes of the user's exception, such as `errno` of an `OSError`",
    by_reference="are those of `error.cause`; on the error that was caught they are empty",
    serves_grpc="are there; the remote traceback is not",
    ours="are those of `error.cause`; on the error that was caught they are empty",
    why="it is Ray's own `RayTaskError`, as by reference, with the remote traceback",
)
def test_attributes_of_exceptions(transport, differing):
    error = error_of(transport.over(differing).missing_file.remote())
    assert isinstance(error, FileNotFoundError)
    if transport.name == SERVES_GRPC:
        assert (error.errno, error.filename) == (2, "somewhere")
    else:
        assert isinstance(error, RayTaskError)
        assert (error.errno, error.filename) == (None, None)
        assert (error.cause.errno, error.cause.filename) == (2, "somewhere")


@difference(
    "A `ValueError` that cannot be pickled arrives as",
    by_reference="a `RayTaskError` with its text",
    serves_grpc="an error of gRPC",
    ours="a `RayTaskError` with its text",
    why="it is told all the same",
)
def test_exceptions_that_cannot_be_pickled(transport, differing):
    error = error_of(transport.over(differing).fail_with_a_lock.remote())
    assert isinstance(error, RayTaskError) is (transport.name != SERVES_GRPC)
    if transport.name != SERVES_GRPC:
        assert "ValueError: <unlocked _thread.lock" in str(error)


@difference(
    "The replica dies while the call runs",
    by_reference="`ActorDiedError`, a `RayActorError`",
    serves_grpc="`ActorUnavailableError`, a `RayActorError`",
    ours="`ReplicaDiedError`, a `RayActorError`, which says whether the call may have run",
    why="a caller that may repeat the call has to know",
)
def test_replicas_that_die(transport, deploy):
    name = f"dying-{transport.name.replace(' ', '-')}"
    deploy(serve_grpc.deployment(**OPTIONS)(Differing).bind(), name)
    error = error_of(transport.over(serve_grpc.get_app_handle(name)).die.remote())
    assert isinstance(error, RayActorError)
    expected = {
        BY_REFERENCE: ray.exceptions.ActorDiedError,
        SERVES_GRPC: ray.exceptions.ActorUnavailableError,
        OURS: errors.ReplicaDiedError,
    }
    assert type(error) is expected[transport.name]
    assert isinstance(error, RayError)
    assert getattr(error, "may_have_executed", None) is (True if transport.name == OURS else None)
