"""One call: its outcome, its items and its end, as the transport and a single consumer see them."""

from __future__ import annotations

import asyncio
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.exceptions import RayTaskError
from ray.serve import context as serve_context

from serve_grpc._serve.exceptions import RemoteException, message_from_exception
from serve_grpc._serve.requests import cancel_children
from serve_grpc.caller.outcomes import Raised, Result, UserException, Value
from serve_grpc.errors import SerializationError
from serve_grpc.serialization import Serializer, get_serializer
from tests.unit.sessions_loop import Cancelled, TransportLoop


def test_each_consumer_gets_a_result_of_its_own(transport: TransportLoop) -> None:
    call = transport.new_call()
    assert not call.done
    transport.run(call.end, Result(pickle.dumps([1])))
    call.result().append(2)
    with ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(call.result) for _ in range(8)]]
    assert results == [[1]] * 8
    assert len({id(result) for result in results}) == 8


def test_each_consumer_gets_an_error_of_its_own(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.end, Raised(raised_from(ValueError("mine"), KeyError("reason"))))
    seen = []
    for _ in range(3):
        with pytest.raises(ValueError, match="mine") as raised:
            call.result()
        seen.append(raised.value)
        assert isinstance(raised.value.__cause__, KeyError)
    assert len({id(error) for error in seen}) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in seen}) == 1


def raised_from(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


class CannotBeCopied(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__("code")
        self.code = code


def test_an_error_that_cannot_be_copied_is_raised_itself(transport: TransportLoop) -> None:
    call = transport.new_call()
    error = CannotBeCopied(code=7)
    transport.run(call.end, Raised(error))
    for _ in range(2):
        with pytest.raises(CannotBeCopied) as raised:
            call.result()
        assert raised.value is error


class Wraps(Exception):
    """Whose constructor makes another text of the one that it kept."""

    def __init__(self, text: str) -> None:
        super().__init__(f"wrapped {text}")


def test_an_error_says_the_same_each_time(transport: TransportLoop) -> None:
    plain, users = transport.new_call(), transport.new_call()
    error = RayTaskError("method", "traceback", ValueError("mine")).as_instanceof_cause()
    error.__notes__ = ["noted"]  # as `add_note` of Python 3.11
    transport.run(plain.end, Raised(Wraps("mine")))
    transport.run(users.end, Raised(error))
    for _ in range(2):
        with pytest.raises(Wraps, match=r"^wrapped mine$"):
            plain.result()
        with pytest.raises(ValueError, match="noted"):
            users.result()


class Loaded(Exception):
    """Notes the thread that loads it."""

    threads: tuple[int, ...] = ()

    def __setstate__(self, _: object) -> None:
        Loaded.threads += (threading.get_ident(),)


def a_remote_exception() -> RemoteException:
    error = Loaded("mine")
    error.state = "for __setstate__"  # type: ignore[attr-defined]
    message = message_from_exception(error, "method", may_pickle=True, refs=[])
    Loaded.threads = ()
    return RemoteException(message, request_id="request", may_unpickle=True)


def test_the_users_exception_is_loaded_by_whoever_consumes_the_call(
    transport: TransportLoop,
) -> None:
    call, stream = transport.new_call(), transport.new_stream()
    remote = a_remote_exception()
    for one in (call, stream):
        transport.run(one.end, UserException(remote))
    assert Loaded.threads == ()
    with pytest.raises(Loaded):
        call.result()
    assert set(Loaded.threads) == {threading.get_ident()}
    Loaded.threads = ()

    async def awaited() -> None:
        for waits in (call, stream.fetch_item(), call):
            with pytest.raises(Loaded):
                await waits

    asyncio.run(awaited())
    assert len(Loaded.threads) >= 3
    assert threading.get_ident() not in Loaded.threads
    assert transport.ident not in Loaded.threads


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_result_that_ends_whoever_loads_it_fails_its_call_alone(
    transport: TransportLoop, kind: type[BaseException]
) -> None:
    def load(_: bytes) -> object:
        raise kind("of a module that is a program")

    loads = Serializer("odd", pickle.dumps, load).load_response
    call, stream = transport.new_call(response_loads=loads), transport.new_stream()
    stream.response_loads = loads
    transport.run(call.end, Result(b"result"))
    transport.run(stream.add_item, b"item")

    async def awaited() -> None:
        for waits in (call, stream.fetch_item()):
            with pytest.raises(SerializationError, match="of a module that is a program"):
                await waits

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, awaited()).result()
        with pytest.raises(SerializationError, match=kind.__name__):
            pool.submit(call.result).result()


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_a_stream_that_fails_with_the_end_of_an_iterator_is_not_complete(
    transport: TransportLoop, kind: type[Exception]
) -> None:
    stream = transport.new_stream()
    message = message_from_exception(kind("too early"), "method", may_pickle=True, refs=[])
    remote = RemoteException(message, request_id="request", may_unpickle=True)
    transport.run(stream.end, UserException(remote))

    async def awaited() -> None:
        await stream.fetch_item()

    for wait in (lambda: asyncio.run(awaited()), stream.raise_end):
        with pytest.raises(RuntimeError, match=kind.__name__) as raised:
            wait()
        assert isinstance(raised.value, RayTaskError)


def test_a_value_of_serves_own_transport_is_not_deserialized(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.end, Value(b"bytes that are a value"))
    assert call.result() == b"bytes that are a value"


def test_bytes_that_do_not_fit_name_the_request(transport: TransportLoop) -> None:
    call = transport.new_call(response_loads=get_serializer("msgpack").load_response)
    transport.run(call.end, Result(b"\xc1"))
    for _ in range(2):
        with pytest.raises(SerializationError) as raised:
            call.result()
        assert (raised.value.request_id, raised.value.may_have_executed) == ("request", True)


def test_the_first_outcome_stands(transport: TransportLoop) -> None:
    succeeded, failed = transport.new_call(), transport.new_call()
    transport.run(succeeded.end, Result(pickle.dumps("value")))
    transport.run(succeeded.end, Raised(ValueError("too late")))
    transport.run(failed.end, Raised(ValueError("first")))
    transport.run(failed.end, Result(pickle.dumps("too late")))
    assert succeeded.result() == "value"
    with pytest.raises(ValueError, match="first"):
        failed.result()


def test_a_child_is_known_to_its_parent_until_its_end(transport: TransportLoop) -> None:
    call = transport.new_call()
    call.become_child("parent/1")
    cancel_children("parent/1")
    assert call.is_cancelled
    transport.run(call.end, Result(pickle.dumps(1)))  # the cancel was first, or came too late
    assert "parent/1" not in serve_context._in_flight_requests


def test_cancelling_reaches_the_owner_once_on_its_loop(transport: TransportLoop) -> None:
    call = transport.new_call()
    for _ in range(3):
        call.give_up()
    transport.run(lambda: None)
    assert transport.cancelled == [call]
    assert call.is_cancelled
    with pytest.raises(Cancelled):
        call.result()


def test_cancelling_a_call_that_is_over_changes_nothing(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.end, Result(pickle.dumps(1)))
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
    transport.run(call.end, Result(b""))
    taken = []
    while call.wait_item_blocking():
        taken.append(call.take_item())
    assert taken == [0, 1, 2]
    assert not call.wait_item_blocking()


def test_items_before_an_error_are_still_there(transport: TransportLoop) -> None:
    call = transport.new_stream()
    transport.run(call.add_item, pickle.dumps("item"))
    transport.run(call.end, Raised(ValueError("then this")))

    async def consume() -> list[object]:
        return [call.take_item() for _ in range(5) if await call.wait_item()]

    assert asyncio.run(consume()) == ["item"]
    assert isinstance(call.exception(), ValueError)


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
    transport.run(call.end, Result(b""))
    for _ in range(10):
        call.take_item()
    transport.run(lambda: None)
    assert transport.grants == []


def test_items_of_serves_own_transport_are_values(transport: TransportLoop) -> None:
    call = transport.new_stream()
    transport.run(call.add_item, Value({"not": "bytes"}))
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
    call.delivery.where = "queued"  # type: ignore[union-attr]
    assert "queued" in repr(call)
    transport.run(call.end, Result(b""))
    assert "done" in repr(call)
