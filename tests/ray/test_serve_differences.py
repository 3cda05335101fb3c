"""Where the three transports differ in what a user sees: the rows of "What differs" in
docs/compatibility.md.

Each test runs once over each transport and says what must be there. A row that changes here changes
on the page too.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import grpc
import numpy as np
import pandas as pd
import pydantic
import pytest
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

import serve_grpc
from serve_grpc.errors import MessageTooLargeError, SerializationError, ServeGrpcError
from tests.ray.apps.differing import Differing, OverQuota, is_writable
from tests.ray.apps.gated import Board
from tests.ray.compat.behaviours import TRANSPORTS, over
from tests.ray.needs import needs_ray
from tests.ray.waiting import eventually, eventually_async

PATIENCE_S = 30
LARGE = b"x" * 5_000_000
OPTIONS = {"graceful_shutdown_timeout_s": 1, "graceful_shutdown_wait_loop_s": 0.1}


def expect(by_reference: Any, serves_grpc: Any, ours: Any) -> pytest.MarkDecorator:
    """Run the test over each transport, with what is expected of it."""
    cases = zip(TRANSPORTS, (by_reference, serves_grpc, ours), strict=True)
    params = [pytest.param(name, expected, id=name) for name, expected in cases]
    return pytest.mark.parametrize(("transport", "expected"), params)


@pytest.fixture(scope="module")
def apps(deploy):
    """Handles by name: "wide" has 100 slots, "narrow" one, "guarded" 100 and a short queue."""

    def app(name, **options):
        cpu = {"num_cpus": 0.01}
        deployment = serve_grpc.deployment(ray_actor_options=cpu, **OPTIONS, **options)(Differing)
        return deploy(deployment.bind(), f"differing-{name}")

    return {
        "wide": app("wide", max_ongoing_requests=100),
        "narrow": app("narrow", max_ongoing_requests=1),
        "guarded": app("guarded", max_ongoing_requests=100, max_queued_requests=5),
    }


@pytest.fixture
def handle(apps, transport):
    return over(transport, apps["wide"])


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    for name in ("first", "second", "all"):
        board.release(name)


def caught(response: Any, timeout_s: float = PATIENCE_S) -> Exception:
    """What the call raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the tests look at it
        response.result(timeout_s=timeout_s)
    return raised.value


# ---------------------------------------------------------------- values


@expect(False, True, True)
@pytest.mark.parametrize(
    "value", [np.arange(100_000), np.arange(3), pd.DataFrame({"a": np.arange(1000.0)})]
)
def test_an_array_or_frame_can_be_changed_where_it_arrives(handle, expected, value):
    assert handle.is_writable.remote(value).result(timeout_s=PATIENCE_S) is expected
    assert is_writable(handle.echo.remote(value).result(timeout_s=PATIENCE_S)) is expected


@expect("bytes", "bytearray", "bytearray")
def test_a_bytearray_stays_one(handle, expected):
    assert handle.kind.remote(bytearray(b"x")).result(timeout_s=PATIENCE_S) == expected
    result = handle.echo.remote(bytearray(b"x")).result(timeout_s=PATIENCE_S)
    assert type(result).__name__ == expected


@expect("bytes", "bytes", "bytes")
def test_a_memoryview_becomes_bytes(handle, expected):
    assert handle.kind.remote(memoryview(b"x")).result(timeout_s=PATIENCE_S) == expected


@expect(None, grpc.aio.AioRpcError, MessageTooLargeError)
@pytest.mark.parametrize("method", ["length", "blob"])
def test_more_than_four_mebibytes(handle, expected, method):
    argument = LARGE if method == "length" else len(LARGE)
    response = getattr(handle, method).remote(argument)
    if expected is None:
        assert response.result(timeout_s=PATIENCE_S) in (LARGE, len(LARGE))
    else:
        assert type(caught(response)) is expected


@expect(TypeError, TypeError, SerializationError)
def test_an_argument_that_cannot_be_pickled_fails_where_the_response_is_waited_for(
    handle, expected
):
    error = caught(handle.echo.remote(threading.Lock()))
    assert type(error) is expected
    assert isinstance(error, TypeError)


@expect([1, 2], [1, 2], [1, 2])
def test_what_is_done_to_a_result_is_not_seen_by_the_next_who_waits(handle, expected):
    response = handle.numbers.remote()
    response.result(timeout_s=PATIENCE_S).append(3)
    assert response.result(timeout_s=PATIENCE_S) == expected
    assert handle.echo.remote(response).result(timeout_s=PATIENCE_S) == expected


# ---------------------------------------------------------------- errors


@expect((0, 107), (107, None), (0, 107))
def test_the_fields_of_an_exception_caught_by_its_type(handle, expected):
    error = caught(handle.raise_quota.remote())
    assert isinstance(error, OverQuota)
    assert (error.used, getattr(getattr(error, "cause", None), "used", None)) == expected


@expect((None, 2), (2, None), (None, 2))
def test_the_errno_of_an_os_error(handle, expected):
    error = caught(handle.raise_os_error.remote())
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, getattr(getattr(error, "cause", None), "errno", None)) == expected


@expect(False, True, False)
def test_an_exception_of_a_final_class_is_caught_by_its_type(handle, expected):
    error = caught(handle.raise_validation_error.remote())
    assert isinstance(error, pydantic.ValidationError) is expected
    true_error = error if expected else error.cause
    assert true_error.errors()[0]["loc"] == ("x",)


@expect(RayTaskError, grpc.aio.AioRpcError, RayTaskError)
def test_a_built_in_exception_that_cannot_be_pickled(handle, expected):
    error = caught(handle.raise_with_a_lock.remote())
    assert isinstance(error, expected)
    assert not isinstance(error, ServeGrpcError)
    assert ("holds a lock" in str(error)) is (expected is RayTaskError)


@expect(GetTimeoutError, TimeoutError, TimeoutError)
def test_the_class_of_a_timeout_while_waiting(handle, expected, board):
    response = handle.hold.remote(board.path, "first")
    eventually(lambda: board.count("start"))  # until then it is a TimeoutError by reference, too
    error = caught(response, timeout_s=0.1)
    assert type(error) is expected
    assert isinstance(error, TimeoutError)


@expect(RequestCancelledError, RequestCancelledError, RequestCancelledError)
def test_the_class_of_a_cancelled_call(handle, expected, board):
    response = handle.hold.remote(board.path, "first")
    eventually(lambda: board.count("start"))
    response.cancel()
    assert type(caught(response)) is expected


# ---------------------------------------------------------------- calls that are given up


@expect("end", "cancelled", "cancelled")
def test_what_becomes_of_a_call_whose_awaiter_timed_out(handle, expected, board):
    async def main():
        response = handle.hold.remote(board.path, "first")
        await eventually_async(lambda: board.count("start"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response, 0.1)

    asyncio.run(main())
    if expected == "end":
        handle.echo.remote().result(timeout_s=PATIENCE_S)
        board.release()
    eventually(lambda: board.count(expected), timeout_s=PATIENCE_S)


@expect("runs on", "runs on", "closed")
def test_what_becomes_of_a_stream_that_was_let_go(handle, expected, board):
    async def main():
        stream = handle.options(stream=True).stream.remote(board.path, "first")
        async for number in stream:
            if number == 3:
                break
        del stream
        made = board.count("item")
        await eventually_async(lambda: board.count("closed") or board.count("item") > made + 100)
        return "closed" if board.count("closed") else "runs on"

    assert asyncio.run(main()) == expected


@needs_ray("2.60", "def handlers run in threads")
@expect("beside it", "beside it", "after it")
def test_when_the_next_call_starts_after_a_def_handler_was_cancelled(
    apps, transport, expected, board
):
    handle = over(transport, apps["narrow"])
    first = handle.block.remote(board.path, "first")
    eventually(lambda: board.count("start", "first"))
    first.cancel()
    assert isinstance(caught(first), RequestCancelledError)  # at once, though its thread goes on
    second = handle.block.remote(board.path, "second")
    if expected == "beside it":
        eventually(lambda: board.count("start", "second"))
    else:
        with pytest.raises(AssertionError):
            eventually(lambda: board.count("start", "second"), timeout_s=1)
        board.release("first")
        eventually(lambda: board.count("start", "second"), timeout_s=PATIENCE_S)
    board.release("first")
    board.release("second")
    second.result(timeout_s=PATIENCE_S)


# ---------------------------------------------------------------- queues


@expect(True, True, False)
def test_an_idle_replica_refuses_part_of_a_burst_over_max_queued_requests(
    apps, transport, expected
):
    handle = over(transport, apps["guarded"])
    handle.echo.remote().result(timeout_s=PATIENCE_S)

    def outcome(response):
        try:
            return response.result(timeout_s=PATIENCE_S)
        except BackPressureError:
            return "refused"

    outcomes = Counter(map(outcome, [handle.echo.remote("answered") for _ in range(50)]))
    assert (outcomes["refused"] > 0) is expected
    assert set(outcomes) <= {"refused", "answered"}
