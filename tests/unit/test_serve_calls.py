"""Calls that are left to Serve's own router: how its responses fill them, and how they end."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.serve_calls import ServeCalls
from serve_grpc.errors import ReplicaDiedError, SerializationError, ServeGrpcError
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.routing.retry import RetryBudget
from tests.fakes.deliveries import Chooser, deliver
from tests.ray.waiting import eventually_async

WAITS = object()


class Response:
    """Serve's, of a call that its own transport carries: gives results, raises, or waits."""

    def __init__(self, result: Any) -> None:
        self._result = result
        self.is_cancelled = False

    async def _fetch_future_result_async(self) -> None:
        """No call of ours is behind it."""

    def cancel(self) -> None:
        self.is_cancelled = True

    def __await__(self) -> Any:
        return self._get().__await__()

    async def _get(self) -> Any:
        if self._result is WAITS:
            await asyncio.Event().wait()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._result:
            yield item


def start(calls: ServeCalls, make: Callable[[], Any] | None, *, stream: bool = False) -> Delivery:
    envelope = Envelope("predict", "pickle", "pickle", stream, "", "")
    delivery = deliver(RequestFields(envelope, pickle.dumps(1), "id", credit_items=2), Chooser())
    delivery.make_serve_call = make
    calls.start(delivery, is_fallback=True)
    return delivery


def test_a_value_is_passed_on_as_it_is_and_nothing_is_left() -> None:
    async def main() -> None:
        calls = ServeCalls(RetryBudget(0))
        call = start(calls, lambda: Response([1])).call
        assert len(calls) == 1
        assert await call == [1]
        await eventually_async(lambda: not calls)

    asyncio.run(main())


def test_no_more_is_taken_of_a_stream_than_its_consumer_has_room_for() -> None:
    async def main() -> None:
        taken: list[int] = []

        def items() -> Any:
            for number in range(9):
                taken.append(number)
                yield number

        call = start(ServeCalls(RetryBudget(0)), lambda: Response(items()), stream=True).call
        await eventually_async(lambda: len(taken) >= 2)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(taken) == 2
        got = []
        while await call.wait_item():
            got.append(call.take_item())
        assert got == list(range(9))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("of Serve"), ValueError),
        (asyncio.CancelledError(), RequestCancelledError),
        (SystemExit(3), SerializationError),
    ],
)
def test_what_a_response_raises_ends_its_call(
    error: BaseException, expected: type[Exception]
) -> None:
    async def main() -> None:
        call = start(ServeCalls(RetryBudget(0)), lambda: Response(error)).call
        await call.wait_done()
        assert isinstance(call.exception(), expected)

    asyncio.run(main())


def test_giving_up_cancels_the_call_of_serve() -> None:
    async def main() -> None:
        calls, response = ServeCalls(RetryBudget(0)), Response(WAITS)
        call = start(calls, lambda: response).call
        for _ in range(3):
            await asyncio.sleep(0)
        call.give_up()
        await eventually_async(lambda: not calls)
        assert response.is_cancelled
        assert isinstance(call.exception(), RequestCancelledError)

    asyncio.run(main())


def test_when_serve_is_gone_each_call_is_told() -> None:
    async def main() -> None:
        calls = ServeCalls(RetryBudget(0))
        waiting = [start(calls, lambda: Response(WAITS)).call for _ in range(2)]
        calls.fail_all("Serve is gone")
        for call in waiting:
            error = call.exception()
            assert isinstance(error, ServeGrpcError)
            assert (str(error), error.may_have_executed) == ("Serve is gone", True)
        await eventually_async(lambda: not calls)

    asyncio.run(main())


def test_a_call_that_cannot_be_made_over_serve_ends() -> None:
    async def main() -> None:
        error = start(ServeCalls(RetryBudget(0)), None).call.exception()
        assert isinstance(error, ServeGrpcError)
        assert not isinstance(error, ReplicaDiedError)
        assert "no longer has an endpoint" in str(error)

    asyncio.run(main())
