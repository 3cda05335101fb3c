"""Calls that are cancelled with the request that made them."""

from __future__ import annotations

import asyncio

import pytest
from ray.serve import context as serve_context
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.caller.call import Call
from serve_grpc.caller.outcomes import Raised
from serve_grpc.response import ByValueResponse, ByValueResponseGenerator
from tests.unit.sessions_loop import TransportLoop, until

PARENT = "parent"


class Transport(TransportLoop):
    """Ends cancelled calls as the router does."""

    def cancel(self, call: Call) -> None:
        call.end(Raised(RequestCancelledError("request")))


@pytest.fixture
def transport():
    transport = Transport()
    yield transport
    transport.stop()


def cancel_as_serve_does() -> None:
    """What Serve's replica does when a request is cancelled."""
    for child in serve_context._get_in_flight_requests(PARENT).values():
        child.cancel()


def test_every_child_is_cancelled_though_each_leaves_at_once(transport: Transport) -> None:
    calls = [transport.new_call() for _ in range(5)]
    for call in calls:
        call.become_child(PARENT)
    for child in serve_context._get_in_flight_requests(PARENT).values():  # as Serve does
        child.cancel()
        until(lambda child=child: child.done)
    assert all(isinstance(call.exception(), RequestCancelledError) for call in calls)
    assert PARENT not in serve_context._in_flight_requests


async def awaited(response: ByValueResponse) -> None:
    await response


async def iterated(response: ByValueResponseGenerator) -> None:
    async for _ in response:
        pass


def unary(transport: Transport):
    call = transport.new_call()
    return call, ByValueResponse(call), awaited


def stream(transport: Transport):
    call = transport.new_stream()
    return call, ByValueResponseGenerator(call), iterated


@pytest.mark.parametrize("kind", [unary, stream])
def test_code_that_awaits_it_sees_its_own_cancellation(transport: Transport, kind) -> None:
    call, response, wait = kind(transport)
    call.become_child(PARENT)
    cancel_as_serve_does()
    until(lambda: call.done)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(wait(response))
    assert not response.cancelled()


@pytest.mark.parametrize("kind", [unary, stream])
def test_who_cancels_a_response_is_told_so(transport: Transport, kind) -> None:
    call, response, wait = kind(transport)
    response.cancel()
    until(lambda: call.done)
    with pytest.raises(RequestCancelledError):
        asyncio.run(wait(response))
    assert response.cancelled()


def test_a_thread_is_told_that_the_request_was_cancelled(transport: Transport) -> None:
    call, response, _ = unary(transport)
    call.become_child(PARENT)
    cancel_as_serve_does()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=20)


@pytest.mark.parametrize("kind", [unary, stream])
def test_a_handler_that_raises_cancelled_error_by_itself_cancels_nobody(
    transport: Transport, kind
) -> None:
    call, response, wait = kind(transport)
    transport.run(call.end, Raised(RequestCancelledError("request")))
    with pytest.raises(RequestCancelledError):
        asyncio.run(wait(response))
