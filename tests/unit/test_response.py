"""What a consumer of a response sees when it gives up, or has had enough."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Iterator

import pytest
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.caller.call import Call
from serve_grpc.caller.outcomes import Raised, Result
from serve_grpc.response import ByValueResponse, ByValueResponseGenerator
from tests.unit.sessions_loop import TransportLoop


class Transport(TransportLoop):
    """Ends cancelled calls as the router does."""

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)
        call.end(Raised(RequestCancelledError("request")))


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport()
    yield transport
    transport.stop()


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_response_that_was_given_up_says_so_when_it_is_awaited_again(
    transport: Transport, is_stream: bool
) -> None:
    stream: ByValueResponseGenerator[object] = ByValueResponseGenerator(transport.new_stream())
    response: ByValueResponse[object] = ByValueResponse(transport.new_call())

    async def wait() -> object:
        return await (stream.__anext__() if is_stream else response)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wait(), 0.001)
        for _ in range(2):
            with pytest.raises(RequestCancelledError):
                await wait()
        task = asyncio.current_task()
        assert task is not None
        assert getattr(task, "cancelling", int)() == 0

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_waits_is_cancelled(transport: Transport) -> None:
    response: ByValueResponse[object] = ByValueResponse(transport.new_call())

    async def main() -> None:
        async def wait() -> object:
            return await response

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


def stream_of(transport: Transport, items: int) -> ByValueResponseGenerator[int]:
    call = transport.new_stream()
    for number in range(items):
        transport.run(call.add_item, pickle.dumps(number))
    return ByValueResponseGenerator(call)


def test_a_stream_that_is_closed_ends_its_loop_and_its_call(transport: Transport) -> None:
    stream = stream_of(transport, 3)

    async def main() -> list[int]:
        taken = []
        async with contextlib.aclosing(stream):
            async for item in stream:
                taken.append(item)
                break
        return taken + [item async for item in stream]

    assert asyncio.run(main()) == [0]
    transport.run(lambda: None)
    assert transport.cancelled == [stream._call]
    assert not stream.cancelled()


def test_a_stream_is_closed_in_a_thread(transport: Transport) -> None:
    stream = stream_of(transport, 3)
    with contextlib.closing(stream):
        assert next(stream) == 0
    assert list(stream) == []
    transport.run(lambda: None)
    assert transport.cancelled == [stream._call]


def test_closing_again_or_after_the_end_changes_nothing(transport: Transport) -> None:
    stream = stream_of(transport, 1)
    transport.run(stream._call.end, Result(b""))
    assert list(stream) == [0]
    for _ in range(2):
        stream.close()
    transport.run(lambda: None)
    assert transport.cancelled == []
