"""One call: its outcome, its items and its end, as the transport and a single consumer see them."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from ray.serve import context as serve_context

from serve_grpc._serve.requests import cancel_children
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    SerializationError,
    ServeGrpcError,
)
from serve_grpc.serialization import get_serializer
from tests.unit.transport_loop import Cancelled, TransportLoop


def test_a_result_is_deserialized_once_and_given_as_often_as_asked(
    transport: TransportLoop,
) -> None:
    loads: list[bytes] = []

    def load(payload: bytes) -> object:
        loads.append(payload)
        return pickle.loads(payload)

    call = transport.new_call(response_loads=load)
    assert not call.done
    transport.run(call.succeed, pickle.dumps([1]))
    first = call.result()
    assert first == [1]
    assert call.result() is first
    assert len(loads) == 1


def test_an_error_is_raised_as_often_as_asked(transport: TransportLoop) -> None:
    call = transport.new_call()
    error = ValueError("mine")
    transport.run(call.fail, error)
    for _ in range(2):
        with pytest.raises(ValueError, match="mine") as raised:
            call.result()
        assert raised.value is error


@pytest.mark.parametrize("kind", [DeadlineExceededError, MessageTooLargeError])
@pytest.mark.parametrize("was_started", [False, True])
def test_an_error_after_a_lost_try_tells_of_that_try(
    transport: TransportLoop, kind: type[ServeGrpcError], was_started: bool
) -> None:
    error = kind("late") if kind is DeadlineExceededError else kind(2, 1, "request")
    call = transport.new_call()
    call.may_have_executed = was_started
    transport.run(call.fail, error)
    with pytest.raises(kind) as raised:
        call.result()
    assert raised.value.may_have_executed is was_started


def test_a_value_of_serves_own_transport_is_not_deserialized(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.succeed_with, b"bytes that are a value")
    assert call.result() == b"bytes that are a value"


def test_bytes_that_do_not_fit_name_the_request(transport: TransportLoop) -> None:
    call = transport.new_call(response_loads=get_serializer("msgpack").load_response)
    transport.run(call.succeed, b"\xc1")
    for _ in range(2):
        with pytest.raises(SerializationError) as raised:
            call.result()
        assert (raised.value.request_id, raised.value.may_have_executed) == ("request", True)


def test_the_first_outcome_stands(transport: TransportLoop) -> None:
    succeeded, failed = transport.new_call(), transport.new_call()
    transport.run(succeeded.succeed, pickle.dumps("value"))
    transport.run(succeeded.fail, ValueError("too late"))
    transport.run(failed.fail, ValueError("first"))
    transport.run(failed.succeed, pickle.dumps("too late"))
    assert succeeded.result() == "value"
    with pytest.raises(ValueError, match="first"):
        failed.result()


def test_a_child_is_known_to_its_parent_until_its_end(transport: TransportLoop) -> None:
    call = transport.new_call()
    call.become_child("parent/1")
    cancel_children("parent/1")
    assert call.is_cancelled
    transport.run(call.succeed, pickle.dumps(1))  # the cancel was first, or came too late
    assert "parent/1" not in serve_context._in_flight_requests


def test_a_deadline_timer_is_dropped_with_the_call(transport: TransportLoop) -> None:
    call = transport.new_call()
    timer = transport.loop.call_later(3600, call.fail, ValueError())
    call.expiry = timer
    transport.run(call.succeed, pickle.dumps(1))
    assert timer.cancelled()
    assert call.expiry is None


def test_cancelling_reaches_the_owner_once_on_its_loop(transport: TransportLoop) -> None:
    call = transport.new_call()
    for _ in range(3):
        call.cancel()
    transport.run(lambda: None)
    assert transport.cancelled == [call]
    assert call.is_cancelled
    with pytest.raises(Cancelled):
        call.result()


def test_cancelling_a_call_that_is_over_changes_nothing(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.succeed, pickle.dumps(1))
    call.cancel()
    transport.run(lambda: None)
    assert (transport.cancelled, call.is_cancelled, call.result()) == ([], False, 1)


def test_cancelling_after_the_transport_is_gone_is_no_error() -> None:
    transport = TransportLoop()
    call = transport.new_call()
    transport.stop()
    call.cancel()
    assert call.is_cancelled
    assert transport.cancelled == []


def test_items_are_taken_in_order_and_then_the_stream_ends(transport: TransportLoop) -> None:
    call = transport.new_stream()
    for number in range(3):
        transport.run(call.add_item, pickle.dumps(number))
    transport.run(call.succeed, b"")
    taken = []
    while call.wait_item_blocking():
        taken.append(call.take_item())
    assert taken == [0, 1, 2]
    assert not call.wait_item_blocking()


def test_items_before_an_error_are_still_there(transport: TransportLoop) -> None:
    call = transport.new_stream()
    transport.run(call.add_item, pickle.dumps("item"))
    transport.run(call.fail, ValueError("then this"))

    async def consume() -> list[object]:
        return [call.take_item() for _ in range(5) if await call.wait_item()]

    assert asyncio.run(consume()) == ["item"]
    assert isinstance(call.error, ValueError)


def test_a_consumer_gives_credit_back_as_it_takes(transport: TransportLoop) -> None:
    call = transport.new_stream(response_loads=bytes)
    for size in (1, 1, 60, 1, 1):
        transport.run(call.add_item, b"x" * size)
    for _ in range(5):
        call.take_item()
    transport.run(lambda: None)
    assert transport.grants == [(2, 2), (1, 60), (2, 2)]


def test_a_stream_that_is_over_needs_no_credit(transport: TransportLoop) -> None:
    call = transport.new_stream(response_loads=bytes)
    for _ in range(10):
        transport.run(call.add_item, b"x")
    transport.run(call.succeed, b"")
    for _ in range(10):
        call.take_item()
    transport.run(lambda: None)
    assert transport.grants == []


def test_items_of_serves_own_transport_are_values(transport: TransportLoop) -> None:
    call = transport.new_stream()
    call.has_value = True
    transport.run(call.add_item, {"not": "bytes"})
    assert call.take_item() == {"not": "bytes"}


def test_an_item_that_does_not_fit_names_the_request_and_the_next_is_there(
    transport: TransportLoop,
) -> None:
    call = transport.new_stream(response_loads=get_serializer("msgpack").load_response)
    transport.run(call.add_item, b"\xc1")
    transport.run(call.add_item, b"\x01")
    with pytest.raises(SerializationError) as raised:
        call.take_item()
    assert raised.value.request_id == "request"
    assert call.take_item() == 1


def test_a_call_shows_its_state(transport: TransportLoop) -> None:
    call = transport.new_call()
    assert repr(call) == "<Call request of 'predict' open>"
    call.is_queued = True
    assert "queued" in repr(call)
    transport.run(call.succeed, b"")
    assert "done" in repr(call)
