"""Streams among the arguments of a request: their places, and the error of one that failed."""

from __future__ import annotations

import asyncio
import builtins
import pickle
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import message_from_exception
from serve_grpc.errors import MessageTooLargeError, ReplicaError, SerializationError, ServeGrpcError
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InboundItem, InputKind
from serve_grpc.protocol.status import message_from_error, request_too_large
from serve_grpc.replica.inputs import Inputs, InvalidRequestError, stream_error
from serve_grpc.request_stream import RequestStream

BY_POSITION = InputPlace(0, "")


def inputs_at(*places: InputPlace, serializer: str = "pickle") -> Inputs:
    return Inputs(places, serializer, (4, 1000), lambda *_: None, lambda _: ValueError())


def kinds_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, with the class of each stream in its place."""

    def kind(value: Any) -> Any:
        return RequestStream if isinstance(value, RequestStream) else value

    return [kind(value) for value in args], {name: kind(kwargs[name]) for name in kwargs}


def test_streams_stand_where_they_stood_at_the_caller() -> None:
    inputs = inputs_at(InputPlace(0, ""), InputPlace(2, ""), InputPlace(0, "audio"))
    args, kwargs = inputs.placed((None, "b", None), {"language": None})
    stream = RequestStream
    assert kinds_of(args, kwargs) == ([stream, "b", stream], {"language": None, "audio": stream})


def test_each_gets_the_items_of_its_number() -> None:
    inputs = inputs_at(InputPlace(1, ""), InputPlace(0, ""))
    (second, first), _ = inputs.placed((None, None), {})
    for number in (0, 1, 1):
        payload = pickle.dumps(number)
        inputs.feed(InboundItem(1, number, InputKind.ITEM, payload, None))
    for number in (0, 1):
        inputs.feed(InboundItem(1, number, InputKind.END, b"", None))
    assert (list(first), list(second)) == ([0], [1, 1])


def test_noop_has_the_stream_for_its_one_argument() -> None:
    args, kwargs = inputs_at(BY_POSITION, serializer="noop").placed((b"",), {})
    assert kinds_of(args, kwargs) == ([RequestStream], {})


@pytest.mark.parametrize(
    ("places", "args", "kwargs", "serializer"),
    [
        pytest.param([InputPlace(1, "")], (None,), {}, "pickle", id="position-of-none"),
        pytest.param([InputPlace(2**32 - 1, "")], (None,), {}, "pickle", id="far-away"),
        pytest.param([InputPlace(0, "")], ("taken",), {}, "pickle", id="position-taken"),
        pytest.param([BY_POSITION, BY_POSITION], (None,), {}, "pickle", id="position-twice"),
        pytest.param([InputPlace(0, "a")], (), {"a": 1}, "pickle", id="name-taken"),
        pytest.param([InputPlace(0, "a"), InputPlace(1, "a")], (), {}, "pickle", id="name-twice"),
        pytest.param([InputPlace(1, "")], (b"",), {}, "noop", id="second-of-noop"),
        pytest.param([BY_POSITION, BY_POSITION], (b"",), {}, "noop", id="two-of-noop"),
        pytest.param([InputPlace(0, "a")], (b"",), {}, "noop", id="name-with-noop"),
    ],
)
def test_a_place_that_is_none_or_taken_is_refused(
    places: list[InputPlace], args: tuple[Any, ...], kwargs: dict[str, Any], serializer: str
) -> None:
    with pytest.raises(InvalidRequestError, match="a stream cannot be the argument"):
        inputs_at(*places, serializer=serializer).placed(args, kwargs)


class Mine(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def told(error: BaseException, *, may_pickle: bool = True) -> Error:
    """As the caller tells of what its generator raised."""
    try:
        raise error
    except BaseException as raised:
        return message_from_exception(raised, "microphone", may_pickle=may_pickle, refs=[])


def raised_for(message: Error, *, may_unpickle: bool = True) -> Any:
    return stream_error(message, request_id="request", may_unpickle=may_unpickle)


def test_the_cause_is_the_callers_own_exception() -> None:
    error = raised_for(told(Mine(7)))
    assert (type(error.cause), error.cause.code) == (Mine, 7)
    assert error.__cause__ is error.cause
    assert "raise error" in str(error)
    assert "Mine: 7" in str(error)
    assert (error.request_id, error.may_have_executed) == ("request", True)


def test_an_exception_that_was_not_sent_is_told_by_its_text() -> None:
    assert "Mine: 7" in str(raised_for(told(Mine(7), may_pickle=False)).cause)
    assert "pickle is refused here" in str(raised_for(told(Mine(7)), may_unpickle=False).cause)
    error = raised_for(told(ValueError("text"), may_pickle=False))
    assert (type(error.cause), error.cause.args) == (ValueError, ("text",))


@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration", "SystemExit"])
def test_what_would_end_a_loop_or_a_process_is_an_error_like_others(kind: str) -> None:
    error = raised_for(told(getattr(builtins, kind)()))
    assert isinstance(error.cause, (RuntimeError, ServeGrpcError))
    assert kind in str(error)


def test_a_generator_that_was_cancelled_is_told_as_that() -> None:
    assert type(raised_for(told(asyncio.CancelledError())).cause) is asyncio.CancelledError


def test_an_item_that_could_not_be_sent_is_told_as_that() -> None:
    error = raised_for(request_too_large(11, 10))
    assert (type(error.cause), error.cause.size, error.cause.limit, error.cause.direction) == (
        MessageTooLargeError, 11, 10, "request",
    )  # fmt: skip
    misfit = SerializationError("no set", serializer="msgpack", direction="request")
    error = raised_for(message_from_error(misfit))
    assert (type(error.cause), str(error.cause)) == (SerializationError, "no set")
    assert (error.cause.serializer, error.cause.direction) == ("msgpack", "request")
    assert type(raised_for(Error(message="unreadable")).cause) is ReplicaError
