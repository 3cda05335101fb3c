"""Responses as arguments: what is passed on as it came, and what has to be loaded first."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import handle as serve_handle

from serve_grpc.arguments import Pickled, needs_resolving, resolve_all, with_inputs
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.misplaced import check_streams
from serve_grpc.caller.outcomes import Raised, Result
from serve_grpc.errors import ServeGrpcError
from serve_grpc.mailbox import Mailbox
from serve_grpc.payload import Segments
from serve_grpc.protocol.caller import Envelope
from serve_grpc.request_stream import RequestStream
from serve_grpc.response import ByValueResponse, ByValueResponseGenerator
from serve_grpc.serialization import Serializer, get_serializer
from serve_grpc.threads import THREAD_NAME
from tests.unit.inboxes import Fed
from tests.unit.sessions_loop import TransportLoop

CLOUDPICKLE = get_serializer("cloudpickle")


class Unloadable:
    """Pickles, and never comes back."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise AssertionError("it was loaded")


async def resolved(value: object, serializer: Serializer) -> object:
    """`value`, resolved as the only argument."""
    (resolved,), _ = await resolve_all((value,), {}, serializer)
    return resolved


def response_of(
    transport: TransportLoop, payload: object, serializer: str = "cloudpickle"
) -> ByValueResponse[object]:
    envelope = Envelope("work", serializer, serializer, False, "/", "app")
    loads = get_serializer(serializer).load_response
    call = transport.new_call(envelope, response_loads=loads)
    transport.run(call.end, Result(payload))
    return ByValueResponse(call)


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_pickled_result_is_passed_on_without_loading_it(
    transport: TransportLoop, name: str, in_pieces: bool
) -> None:
    payload = pickle.dumps([1, "two"])
    response = response_of(
        transport, Segments([payload[:3], payload[3:]]) if in_pieces else payload
    )
    value = asyncio.run(resolved(response, get_serializer(name)))
    assert isinstance(value, Pickled)
    args, _ = CLOUDPICKLE.load_request(get_serializer(name).dump_request((value,), {}))
    assert args == ([1, "two"],)


def test_the_caller_needs_nothing_of_what_it_passes_on(transport: TransportLoop) -> None:
    response = response_of(transport, pickle.dumps(Unloadable()))
    value = asyncio.run(resolved(response, CLOUDPICKLE))
    assert CLOUDPICKLE.dump_request((value,), {})


def test_a_result_that_was_changed_by_its_consumer_is_sent_as_it_came(
    transport: TransportLoop,
) -> None:
    response = response_of(transport, pickle.dumps([1]))
    response.result().append(2)
    value = asyncio.run(resolved(response, CLOUDPICKLE))
    args, _ = CLOUDPICKLE.load_request(CLOUDPICKLE.dump_request((value,), {}))
    assert args == ([1],)


@pytest.mark.parametrize(
    ("response_name", "request_name"), [("msgpack", "pickle"), ("pickle", "msgpack")]
)
def test_another_serializer_needs_the_value(
    transport: TransportLoop, response_name: str, request_name: str
) -> None:
    payload = get_serializer(response_name).dump_response([1])
    response = response_of(transport, payload, response_name)
    assert asyncio.run(resolved(response, get_serializer(request_name))) == [1]


class WhereLoaded:
    """Unpickles to the name of the thread that does so."""

    def __reduce__(self) -> tuple[object, ...]:
        return _thread_name, ()


def _thread_name() -> str:
    return threading.current_thread().name


def test_a_value_that_is_needed_is_not_loaded_on_the_loop(transport: TransportLoop) -> None:
    response = response_of(transport, pickle.dumps(WhereLoaded()))
    where = asyncio.run(resolved(response, get_serializer("msgpack")))
    assert isinstance(where, str)
    assert where.startswith(THREAD_NAME)


def test_an_error_of_the_first_call_is_raised(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.end, Raised(KeyError("first")))
    with pytest.raises(KeyError, match="first"):
        asyncio.run(resolved(ByValueResponse(call), CLOUDPICKLE))


def test_ordinary_arguments_need_no_resolving(transport: TransportLoop) -> None:
    assert not needs_resolving((1, [2]), {"x": 3})
    assert asyncio.run(resolved([2], CLOUDPICKLE)) == [2]
    response = response_of(transport, pickle.dumps(1))
    assert needs_resolving((response,), {})
    assert needs_resolving((), {"x": response})


class Exits(serve_handle.DeploymentResponse[object]):
    """A response of Serve's own whose value is a program."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __await__(self) -> Generator[None, None, object]:
        yield
        raise self._error


def test_an_argument_that_ends_whoever_loads_it_fails_its_call_alone() -> None:
    async def main() -> None:
        with pytest.raises(ServeGrpcError, match="SystemExit: usage"):
            await resolved(Exits(SystemExit("usage")), CLOUDPICKLE)
        with pytest.raises(asyncio.CancelledError):
            await resolved(Exits(asyncio.CancelledError()), CLOUDPICKLE)

    asyncio.run(main())


# ------------------------------------------------------------ streams


def numbers() -> Iterator[int]:
    yield 1


async def numbers_on_loop() -> AsyncIterator[int]:
    yield 1


class Referenced(serve_handle.DeploymentResponseGenerator[int]):
    """A response generator of Serve's own."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


def router_with(**feed: Any) -> Any:
    loop = asyncio.new_event_loop()
    loop.close()  # nothing is to reach it
    known = Feed(**{"is_ready": True, **feed})
    return SimpleNamespace(feed=known, mailbox=Mailbox(loop), memory=None)


def taken(args: tuple[Any, ...], kwargs: dict[str, Any], **feed: Any) -> Any:
    args, kwargs, inputs = with_inputs(router_with(**feed), args, kwargs, CLOUDPICKLE)
    return args, kwargs, inputs


def kinds(inputs: Any) -> list[str]:
    return [type(each.source).__name__ for each in inputs._inputs]


def test_streams_need_to_be_taken_out_of_arguments() -> None:
    for stream in (numbers(), numbers_on_loop(), Referenced(), RequestStream(Fed().inbox)):
        assert needs_resolving((1, stream), {})
        assert needs_resolving((), {"x": stream})


def test_in_the_place_of_each_stream_something_stands_for_it(transport: TransportLoop) -> None:
    call = transport.new_stream()
    response: Any = ByValueResponseGenerator(call)

    async def main() -> Any:
        own = RequestStream(Fed().inbox)
        streams = numbers(), 7, numbers_on_loop(), response, own
        args, kwargs, inputs = taken(streams, {"a": 8, "b": Referenced()})
        with pytest.raises(RuntimeError, match="once"):  # it is given away
            own.__aiter__()
        assert [type(v).__name__ for v in args] == [
            "InputArgument",
            "int",
            *["InputArgument"] * 3,
        ]
        assert (kwargs["a"], kwargs["b"].number) == (8, 4)
        assert inputs.places == ((0, ""), (2, ""), (3, ""), (4, ""), (0, "b"))
        assert kinds(inputs) == ["ThreadSource", "LoopSource", "Relay", "Relay", "LoopSource"]
        return inputs

    asyncio.run(main())._close()


def test_without_a_loop_streams_run_in_threads_or_are_refused() -> None:
    _, _, inputs = taken((numbers(), Referenced()), {})
    assert kinds(inputs) == ["ThreadSource", "ThreadSource"]
    inputs._close()
    stream: Any = numbers_on_loop()
    with pytest.raises(TypeError, match="outside of an event loop"):
        taken((stream,), {})


@pytest.mark.parametrize(
    ("feed", "text"),
    [
        ({"fallback_reason": "has no serve_grpc endpoint"}, r"serve_grpc\.deployment"),
        ({"takes_inputs": False}, "redeploy"),
    ],
)
def test_a_deployment_that_takes_none_is_known_at_once(feed: dict[str, Any], text: str) -> None:
    stream = numbers()
    with pytest.raises(ServeGrpcError, match=text):
        taken((stream,), {}, **feed)
    assert list(stream) == [1]  # it is still the caller's
    assert taken((1,), {}, **feed)[2] is None


def test_what_is_not_known_yet_is_no_refusal() -> None:
    _, _, inputs = taken((numbers(),), {}, is_ready=False, takes_inputs=False)
    assert inputs is not None
    inputs._close()


def test_streams_inside_of_values_are_refused_with_the_place() -> None:
    stream = numbers()
    circle: list[Any] = []
    circle.append(circle)
    for value, where in (
        ([stream], r"argument 0\[0\]"),
        (({"a": {3: stream}},), r"argument 0\[0\]\['a'\]\[3\]"),
        ({stream}, r"argument 0\[0\]"),
        (frozenset({stream}), "argument 0"),
        ([circle, Referenced()], "argument 0"),
    ):
        with pytest.raises(TypeError, match=where):
            check_streams((value,), {})
    with pytest.raises(TypeError, match=r"argument 'x'\[0\]"):
        check_streams((), {"x": [stream]})
    check_streams((stream, circle, [1, "2", {"a": (3,)}]), {"x": stream})


def test_many_values_are_looked_at_only_once_they_did_not_pass() -> None:
    values = [*range(5000), numbers()]
    check_streams((values,), {})
    with pytest.raises(TypeError, match="5000"):
        check_streams((values,), {}, most=None)
